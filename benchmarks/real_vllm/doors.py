"""Front doors before running vLLM servers: Tokenmill, vllm-router and sglang-router, each as documented.

Exists so that a comparison knows only "a door with a port". Each is started for its turn alone: what an idle
one asks of the servers (health, metrics, events) would burden the others' turns.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.factories import free_port
from benchmarks.real_vllm.running import Running, get, post, running, wait_for
from benchmarks.real_vllm.servers import BLOCK_TOKENS, MODEL_NAME, Server
from benchmarks.side_by_side import processes

START_TIMEOUT_S = 60.0

SOURCE = Path(__file__).resolve().parents[2] / "src"


@dataclass(frozen=True)
class Door:
    """A running one. ``process``: its first process; None where the client talks to vLLM directly."""

    port: int
    process: Running | None

    def cpu_s(self) -> float:
        """CPU time of all its processes so far."""
        return processes.cpu_s(processes.tree(self.process.pid)) if self.process is not None else 0.0


Opener = Callable[[Sequence[Server], Path], AbstractContextManager[Door]]
"""Opens a door before servers; the folder is for its files."""


@contextlib.contextmanager
def direct(servers: Sequence[Server], _folder: Path) -> Iterator[Door]:
    """No door at all."""
    yield Door(servers[0].port, None)


def tokenmill(
    model: Path,
    policy: str = "kv",
    prefill: str = "auto",
    *,
    weights: Mapping[str, float] | None = None,
    source: Path = SOURCE,
) -> Opener:
    """Tokenmill attached to the servers. ``prefill``: where prompts are computed, if there are both kinds.
    ``weights``: of the router, where they are not the usual ones. ``source``: the folder of its package."""

    @contextlib.contextmanager
    def opened(servers: Sequence[Server], folder: Path) -> Iterator[Door]:
        port = free_port()
        stages = [
            {
                "name": f"{server.wanted.role}-{number}",
                "role": server.wanted.role,
                "engine": "vllm",
                "attach": server.url,
                "max_sequences": server.wanted.max_sequences,
            }
            for number, server in enumerate(servers)
        ]
        factory = {
            "apiVersion": "tokenmill/v1",
            "kind": "Factory",
            "metadata": {"name": "door"},
            "model": {"name": MODEL_NAME, "path": str(model)},
            "frontend": {"port": port},
            "router": {"policy": policy, "prefill": prefill, "weights": dict(weights or {})},
            "log": {"level": "warning"},
            "stages": stages,
        }
        file = folder / "factory.yaml"
        file.write_text(json.dumps(factory))
        environment = {"TOKENMILL_STATE_DIR": str(folder / "state"), "PYTHONPATH": str(source)}
        command = [sys.executable, "-m", "tokenmill", "up", str(file), "--foreground"]
        with running(command, environment, folder / "tokenmill.log") as process:

            def ready() -> bool:
                workers = json.loads(get(f"http://127.0.0.1:{port}/health"))["worker_list"]
                return [worker["state"] for worker in workers] == ["ready"] * len(servers)

            wait_for(ready, [process], START_TIMEOUT_S)
            yield Door(port, process)

    return opened


def vllm_router(venv: Path, policy: str) -> Opener:
    """vllm-router before aggregated servers. ``policy`` kv_aware is fed by the servers' KV events."""

    def flags(servers: Sequence[Server]) -> list[str]:
        words = ["--policy", policy, "--worker-urls", *(server.url for server in servers)]
        if policy == "kv_aware":
            words += ["--kv-event-block-size", str(BLOCK_TOKENS), "--kv-event-model", MODEL_NAME]
            for server in servers:
                words += ["--kv-event-source", f"{server.url}={server.events}"]
                words += ["--kv-event-replay-source", f"{server.url}={server.replay}"]
        return words

    return _router(venv / "bin" / "vllm-router", flags, "warning")


def vllm_router_split(venv: Path) -> Opener:
    """vllm-router before prefill and decode servers that hand over by NIXL."""

    def flags(servers: Sequence[Server]) -> list[str]:
        words = ["--vllm-pd-disaggregation", "--kv-connector", "nixl"]
        for server in servers:
            words += [f"--{server.wanted.role}", server.url]
        return words

    return _router(venv / "bin" / "vllm-router", flags, "warning")


def sglang_router(venv: Path, policy: str) -> Opener:
    """sglang-router before aggregated servers."""

    def flags(servers: Sequence[Server]) -> list[str]:
        return ["--policy", policy, "--worker-urls", *(server.url for server in servers)]

    return _router(venv / "bin" / "sglang-router", flags, "warn")


def _router(program: Path, flags: Callable[[Sequence[Server]], list[str]], quiet: str) -> Opener:
    @contextlib.contextmanager
    def opened(servers: Sequence[Server], folder: Path) -> Iterator[Door]:
        port, metrics_port = free_port(), free_port()
        command = [str(program.parent / "python"), str(program)]
        if program.name == "sglang-router":
            command.append("launch")
        command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
        command += ["--worker-startup-check-interval", "1", "--log-level", quiet, *flags(servers)]
        with running(command, {}, folder / f"{program.name}.log") as process:
            body = {"model": MODEL_NAME, "prompt": "a", "max_tokens": 2}
            wait_for(
                lambda: bool(post(f"http://127.0.0.1:{port}/v1/completions", body)),
                [process],
                START_TIMEOUT_S,
            )
            yield Door(port, process)

    return opened
