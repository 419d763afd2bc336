"""How long from the command to the first good answer: simulated engine, and the shipped model.

Each run starts ``tokenmill serve`` in a fresh process tree, polls ``/ready``, asks for one token, and stops
it. The two kinds alternate, so that a drift of the machine's speed shows in both.

    python -m benchmarks.startup [--runs 5]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

from benchmarks.factories import free_port, wait_ready
from benchmarks.machine import machine, spread, write_result

KINDS = {"sim engine": ["--engine", "sim"], "shipped model": ["--engine", "torch"]}
LIMITS_S = {"sim engine": 3.0, "shipped model": 10.0}


def start_once(flags: list[str]) -> tuple[float, float]:
    """Return seconds to ready and to the first answered request."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as state:
        begun = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "tokenmill", "serve", "--port", str(port), *flags],
            env={**os.environ, "TOKENMILL_STATE_DIR": state},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_ready(port, process)
            ready_s = time.monotonic() - begun
            body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1}
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"content-type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                json.load(answer)
            answered_s = time.monotonic() - begun
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
    return ready_s, answered_s


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    about = machine()
    ready: dict[str, list[float]] = {kind: [] for kind in KINDS}
    answered: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.runs):
        for kind, flags in KINDS.items():
            ready_s, answered_s = start_once(flags)
            ready[kind].append(ready_s)
            answered[kind].append(answered_s)
    result = {}
    for kind in KINDS:
        result[kind] = {
            "limit_s": LIMITS_S[kind],
            "ready_s": spread(ready[kind]),
            "first_answer_s": spread(answered[kind]),
        }
        print(f"{kind:14} ready {result[kind]['ready_s']}  first answer {result[kind]['first_answer_s']}")
    print(f"written to {write_result('startup', {'startup': result}, about)}")


if __name__ == "__main__":
    main()
