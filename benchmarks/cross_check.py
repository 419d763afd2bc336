"""Load generators that others wrote, run against a factory as they come: do they see what we count?

    PYTHONPATH=src python -m benchmarks.cross_check [--venvs FOLDER] [--client aiperf|guidellm] [--model
    sim|mini]

Installs ``aiperf`` and ``guidellm`` into virtual environments of their own below FOLDER unless they are
there (4 GB together), and lets each send streamed chats to a simulated factory and to the model that ships
with the package. No flag of theirs says that we are we. Checked: every request is answered, none with an
error, and the tokens that they read from our usage are those that were asked for. OpenAI's own client is
part of the tests. Writes benchmarks/results/cross_check.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.factories import free_port, served
from benchmarks.machine import machine, write_result
from benchmarks.side_by_side.model import write_model

PROMPT_TOKENS = 200
TIMEOUT_S = 600
SHIPPED = Path(__file__).parents[1] / "src" / "tokenmill" / "models" / "tokenmill-mini"
STAGES = {
    "sim": "  - {name: both, role: both, replicas: 2, engine: sim, engine_args: {speedup: '20'}}\n",
    "mini": "  - {name: prefill, role: prefill}\n  - {name: decode, role: decode}\n",
}


@dataclass(frozen=True)
class Load:
    """What is asked for. ``model``: folder with the tokenizer."""

    port: int
    model: Path
    requests: int
    concurrency: int
    output_tokens: int


@dataclass(frozen=True)
class Seen:
    """What a client counted."""

    requests: int
    errors: int
    output_tokens: int
    ttft_ms: float
    itl_ms: float


def aiperf(python: Path, folder: Path, load: Load) -> Seen:
    """NVIDIA's aiperf. It asks for usage, and counts the text's tokens again by itself."""
    command = [
        str(python.parent / "aiperf"),
        "profile",
        "--model",
        "bench",
        "--endpoint-type",
        "chat",
        "--streaming",
    ]
    command += ["--url", f"http://127.0.0.1:{load.port}", "--tokenizer", str(load.model), "--ui", "none"]
    command += ["--concurrency", str(load.concurrency), "--request-count", str(load.requests)]
    command += ["--synthetic-input-tokens-mean", str(PROMPT_TOKENS)]
    command += ["--output-tokens-mean", str(load.output_tokens)]
    run(command, folder)
    (path,) = folder.glob("artifacts/*/profile_export_aiperf.json")
    found = json.loads(path.read_text())
    return Seen(
        requests=int(found["request_count"]["avg"]),
        errors=sum(entry["count"] for entry in found["error_summary"]),
        output_tokens=int(found["total_usage_completion_tokens"]["avg"]),
        ttft_ms=found["time_to_first_token"]["p50"],
        itl_ms=found["inter_token_latency"]["p50"],
    )


def guidellm(python: Path, folder: Path, load: Load) -> Seen:
    """vLLM's guidellm. It asks for usage and for answers of full length."""
    report = folder / "report.json"
    command = [str(python.parent / "guidellm"), "run", "--disable-console-interactive"]
    command += ["--backend", f"kind=openai_http,target=http://127.0.0.1:{load.port}"]
    command += ["--profile", f"kind=concurrent,streams={load.concurrency}"]
    command += ["--constraint", f"kind=max_requests,count={load.requests}"]
    command += [
        "--data",
        f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={load.output_tokens}",
    ]
    command += ["--tokenizer", f"kind=huggingface_auto,model={load.model}"]
    command += ["--output", f"kind=json,path={report}"]
    run(command, folder)
    metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    return Seen(
        requests=metrics["request_totals"]["successful"],
        errors=metrics["request_totals"]["errored"] + metrics["request_totals"]["incomplete"],
        output_tokens=int(metrics["output_token_count"]["successful"]["total_sum"]),
        ttft_ms=metrics["time_to_first_token_ms"]["successful"]["median"],
        itl_ms=metrics["inter_token_latency_ms"]["successful"]["median"],
    )


CLIENTS: dict[str, Callable[[Path, Path, Load], Seen]] = {"aiperf": aiperf, "guidellm": guidellm}


def run(command: list[str], folder: Path) -> None:
    """Run a client in ``folder``; raises RuntimeError with its last words when it fails."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{command[0]} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-4000:]}"
        )


def install(venvs: Path, package: str) -> tuple[Path, str]:
    """Make the package's virtual environment unless it is there; returns its Python and the version."""
    python = venvs / f"{package}-venv" / "bin" / "python"
    if not (python.parent / package).exists():
        subprocess.run([sys.executable, "-m", "venv", str(python.parents[1])], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)
    shown = f"import importlib.metadata as m; print(m.version({package!r}))"
    version = subprocess.run(
        [str(python), "-c", shown], check=True, capture_output=True, text=True
    ).stdout.strip()
    return python, version


def check(load: Load, seen: Seen, *, full_length: bool) -> None:
    """Raise AssertionError where a client has not seen what it asked for. A real model may end earlier."""
    asked = load.requests * load.output_tokens
    good = seen.output_tokens == asked if full_length else 0 < seen.output_tokens <= asked
    if seen.requests != load.requests or seen.errors or not good:
        raise AssertionError(f"asked for {load}, but the client saw {seen}")


def factory(name: str, port: int, model: Path) -> str:
    """Write the factory file."""
    return (
        f"apiVersion: tokenmill/v1\nkind: Factory\nmetadata: {{name: cross-check-{name}}}\n"
        f"model: {{name: bench, path: {model}}}\nfrontend: {{port: {port}}}\nlog: {{level: warning}}\n"
        f"stages:\n{STAGES[name]}"
    )


def main() -> None:
    """Install, run, check, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venvs", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--client", choices=sorted(CLIENTS), action="append")
    parser.add_argument("--model", choices=sorted(STAGES), action="append")
    options = parser.parse_args()
    about = machine()
    result: dict[str, object] = {}
    for client in options.client or CLIENTS:
        python, version = install(options.venvs, client)
        for name in options.model or STAGES:
            with tempfile.TemporaryDirectory(prefix="tokenmill-cross-") as temporary:
                folder = Path(temporary)
                model = write_model(folder / "model") if name == "sim" else SHIPPED
                load = Load(free_port(), model, *((60, 8, 64) if name == "sim" else (12, 2, 32)))
                with served(factory(name, load.port, model), folder, load.port):
                    seen = CLIENTS[client](python, folder, load)
            check(load, seen, full_length=name == "sim" or client == "guidellm")
            result[f"{client}, {name}"] = {"version": version, **vars(seen)}
            print(f"{client} {version} against {name}: {seen}", flush=True)
    print(f"written: {write_result('cross_check', result, about)}")


if __name__ == "__main__":
    main()
