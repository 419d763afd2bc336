"""The two systems that are compared, each started as its own documentation says, with two simulated workers.

Exists so that the comparison itself knows only "a plant with a port and a frontend". ``pace`` divides the
modelled step times: a large number is "as fast as it goes".
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side_by_side import processes

PACKAGES = (
    "uvloop", "pydantic", "aiohttp", "certifi", "kubernetes<33", "msgspec", "prometheus-client",
    "pyzmq", "redis", "tqdm", "transformers", "zstandard",
)  # fmt: skip
DYNAMO_VERSION = "1.6.1"
MODEL_NAME = "bench"
MAX_SEQUENCES = 1024
_READY_S = 120.0


@dataclass(frozen=True)
class Plant:
    """A running system. ``frontend`` and ``workers``: process ids."""

    name: str
    port: int
    frontend: list[int]
    workers: list[int]


def install_dynamo(venv: Path) -> str:
    """Make the virtual environment unless it is there; returns the version installed."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    if not _has(python, "dynamo.mocker") or not _has(python, "transformers"):
        pip = [str(python), "-m", "pip", "install", "-q"]
        wheels = [f"ai-dynamo=={DYNAMO_VERSION}", f"ai-dynamo-runtime=={DYNAMO_VERSION}"]
        subprocess.run([*pip, "--no-deps", *wheels], check=True)
        subprocess.run([*pip, *PACKAGES], check=True)
    shown = "import importlib.metadata as m; print(m.version('ai-dynamo-runtime'))"
    return subprocess.run(
        [str(python), "-c", shown], check=True, capture_output=True, text=True
    ).stdout.strip()


def _has(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-c", code], capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def dynamo(venv: Path, folder: Path, model: Path, port: int, policy: str, pace: float) -> Iterator[Plant]:
    """Run Dynamo's frontend and its mocker with two workers."""
    store = folder / "discovery"
    shutil.rmtree(store, ignore_errors=True)
    environment = {
        **os.environ,
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(store),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_LOG": "error",
    }
    planes = ["--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq"]
    python = str(venv / "bin" / "python")
    mocker = [python, "-m", "dynamo.mocker", *planes, "--model-path", str(model), "--model-name", MODEL_NAME]
    mocker += ["--speedup-ratio", f"{pace:g}", "--num-workers", "2", "--block-size", "16"]
    mocker += ["--max-num-seqs", str(MAX_SEQUENCES)]
    door = [python, "-m", "dynamo.frontend", *planes, "--http-port", str(port), "--http-host", "127.0.0.1"]
    door += ["--router-mode", policy, "--kv-cache-block-size", "16"]
    with contextlib.ExitStack() as stack:
        worker = stack.enter_context(_running(mocker, environment, folder / "mocker.log"))
        frontend = stack.enter_context(_running(door, environment, folder / "frontend.log"))
        _wait_for_chat(port, [worker, frontend])
        yield Plant("dynamo", port, processes.tree(frontend.pid), processes.tree(worker.pid))


@contextlib.contextmanager
def tokenmill(
    source: Path, folder: Path, model: Path, port: int, policy: str, pace: float
) -> Iterator[Plant]:
    """Run the factory of ``source`` (a folder with the package ``tokenmill``) with two aggregated workers."""
    speedup = 0 if pace >= 1000 else pace
    path = folder / "factory.yaml"
    path.write_text(
        f"apiVersion: tokenmill/v1\nkind: Factory\nmetadata: {{name: compare}}\n"
        f"model: {{name: {MODEL_NAME}, path: {model}}}\nfrontend: {{port: {port}}}\n"
        f"router: {{policy: {policy}}}\nlog: {{level: warning}}\nstages:\n"
        f"  - {{name: both, role: both, replicas: 2, engine: sim, max_sequences: {MAX_SEQUENCES}, "
        f"engine_args: {{speedup: '{speedup:g}'}}}}\n"
    )
    environment = {**os.environ, "TOKENMILL_STATE_DIR": str(folder / "state"), "PYTHONPATH": str(source)}
    command = [sys.executable, "-m", "tokenmill", "up", str(path), "--foreground"]
    with _running(command, environment, folder / "tokenmill.log") as supervisor:
        _wait_for_chat(port, [supervisor])
        by_role: dict[str, list[int]] = {"frontend": [], "worker": []}
        for process in processes.tree(supervisor.pid)[1:]:
            for role, found in by_role.items():
                if role in processes.command(process):
                    found.append(process)
        yield Plant("tokenmill", port, by_role["frontend"], by_role["worker"])


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


def _wait_for_chat(port: int, watched: list[subprocess.Popen[bytes]]) -> None:
    """Return once a chat is answered: both systems open their port before they can serve."""
    body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    deadline = time.monotonic() + _READY_S
    while time.monotonic() < deadline:
        for process in watched:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended with {process.returncode}; see its log")
        with contextlib.suppress(OSError, urllib.error.HTTPError):
            urllib.request.urlopen(request, timeout=5).read()
            return
        time.sleep(0.2)
    raise TimeoutError(f"nothing answers a chat on port {port}")
