"""What the handoff costs an idle machine: the time between first and second token, split against aggregated.

The shipped model, a prompt of 1,000 tokens never seen before, one request at a time; the two factories run
side by side and are asked in turn.

    python -m benchmarks.handoff_gap [--runs 40]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import tempfile
from pathlib import Path

from benchmarks.factories import free_port, served
from benchmarks.machine import machine, spread, write_result
from benchmarks.open_loop import Arrival, Sample, Shape, run

PROMPT_TOKENS = 1000
LIMIT_MS = 25
PLANTS = {
    "split": "  - {name: prefill, role: prefill}\n  - {name: decode, role: decode}\n",
    "aggregated": "  - {name: both, role: both}\n",
}


def factory_file(name: str, port: int) -> str:
    """Write the factory file of one plant."""
    return (
        f"apiVersion: tokenmill/v1\nkind: Factory\nmetadata: {{name: {name}}}\nmodel: {{name: bench}}\n"
        f"frontend: {{port: {port}}}\nlog: {{level: warning}}\nstages:\n{PLANTS[name]}"
    )


def ask(port: int, seed: int) -> Sample:
    """Send one request and say what it saw."""
    shape = Shape("idle", PROMPT_TOKENS, 8, 1.0)
    prompt = random.Random(seed).choices(range(300, 1000), k=PROMPT_TOKENS)
    (sample,) = asyncio.run(run("127.0.0.1", port, "bench", [Arrival(0.0, shape, prompt, seed)], 30))
    if sample.error or not sample.gaps_s:
        raise RuntimeError(f"a request failed: {sample}")
    return sample


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=40)
    arguments = parser.parse_args()
    about = machine()
    gaps_ms: dict[str, list[float]] = {plant: [] for plant in PLANTS}
    ttfts_ms: dict[str, list[float]] = {plant: [] for plant in PLANTS}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenmill-bench-")))
        ports = {}
        for plant in PLANTS:
            ports[plant] = free_port()
            (folder / plant).mkdir()
            stack.enter_context(served(factory_file(plant, ports[plant]), folder / plant, ports[plant]))
        for seed in range(arguments.runs + 3):
            for plant, port in ports.items():
                sample = ask(port, seed)
                if seed >= 3:  # the first ones warm caches and allocators
                    gaps_ms[plant].append(1000 * sample.gaps_s[0])
                    ttfts_ms[plant].append(1000 * sample.ttft_s)
    result = {
        plant: {"first_gap_ms": spread(gaps_ms[plant], 2), "ttft_ms": spread(ttfts_ms[plant], 2)}
        for plant in PLANTS
    }
    extra_ms = statistics.median(gaps_ms["split"]) - statistics.median(gaps_ms["aggregated"])
    for plant, figures in result.items():
        print(f"{plant:11} first gap ms {figures['first_gap_ms']}  ttft ms {figures['ttft_ms']}")
    print(f"the handoff adds {extra_ms:.2f} ms to the first gap (limit {LIMIT_MS} ms)")
    figures = {"prompt_tokens": PROMPT_TOKENS, "limit_ms": LIMIT_MS, "added_ms": round(extra_ms, 2), **result}
    print(f"written to {write_result('handoff_gap', figures, about)}")


if __name__ == "__main__":
    main()
