"""Does it pay to split prefill from decode with real vLLM on two cores?

One prefill and one decode server against two aggregated ones, with two sizes of a step's token budget, all
behind Tokenmill. Long prompts arrive while other requests decode, at fixed rates whatever becomes of them
(open loop). A request is good when its time to first token and the 99th percentile of its inter-token times
are within a pair of limits; goodput is good requests a second, and the aggregated side may choose its better
budget for every load and pair of limits.

    python -m benchmarks.vllm_goodput --python VENV/bin/python [--rates 2 4 6 8] [--seconds 10]

VENV: made by ``scripts/vllm_cpu/install.py``. Writes benchmarks/results/vllm_goodput.json.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.disaggregation_pays import SHAPES, summary, table
from benchmarks.machine import machine, write_result
from benchmarks.open_loop import poisson, run
from benchmarks.real_vllm.command_line import parsed, parser_of
from benchmarks.real_vllm.doors import tokenmill
from benchmarks.real_vllm.running import Precedence
from benchmarks.real_vllm.servers import MODEL_NAME, Wanted, serving
from benchmarks.side_by_side import processes
from tokenmill.testing.checkpoints import make_checkpoint

TIMEOUT_S = 20.0
TOKENS = range(300, 4000)
WARM_RATE, WARM_S = 3.0, 3.0
BUDGETS = (256, 2048)
"""Tokens of one step of an aggregated server; 2,048 is vLLM's own."""

SPLIT = "split"


def plants() -> dict[str, list[Wanted]]:
    """The servers of each plant."""
    split = [Wanted(role="prefill"), Wanted(role="decode")]
    aggregated = {
        f"aggregated, budget {budget}": [Wanted(arguments=("--max-num-batched-tokens", str(budget)))] * 2
        for budget in BUDGETS
    }
    return {SPLIT: split, **aggregated}


def measure(
    options: argparse.Namespace, model: Path, folder: Path, precedence: Precedence
) -> list[dict[str, object]]:
    """Every plant at every rate, the plants in turn."""
    runs: list[dict[str, object]] = []
    for number in range(options.rounds):
        everything = list(plants().items())
        for name, wanted in everything if number % 2 == 0 else reversed(everything):
            with (
                serving(options.python, model, wanted, folder) as servers,
                tokenmill(model, prefill=options.prefill, source=options.source)(servers, folder) as door,
            ):
                assert door.process is not None
                for process in (door.process, *(server.process for server in servers)):
                    precedence.give(processes.tree(process.pid))
                runs += _curve(options, door.port, name, number)
    return runs


def _curve(options: argparse.Namespace, port: int, name: str, number: int) -> list[dict[str, object]]:
    """One plant's runs, from the lowest rate to the highest."""
    warm = poisson(SHAPES, WARM_RATE, WARM_S, TOKENS, seed=99)
    asyncio.run(run("127.0.0.1", port, MODEL_NAME, warm, TIMEOUT_S))
    found: list[dict[str, object]] = []
    for rate in options.rates:
        arrivals = poisson(SHAPES, rate, options.seconds, TOKENS, seed=1000 * number + round(rate))
        samples = asyncio.run(run("127.0.0.1", port, MODEL_NAME, arrivals, TIMEOUT_S))
        found.append({"plant": name, "rate": rate, "round": number, "samples": samples})
        print(f"{number} {name:24} {rate:5.1f}/s  {summary(samples)}", flush=True)
        if any(sample.error for sample in samples):
            print(f"   errors: {sorted({sample.error for sample in samples if sample.error})}")
    return found


def show(rows: Sequence[dict[str, object]]) -> None:
    """Print the curve for each pair of limits."""
    print(f"\n{'TTFT':>6} {'ITL':>5} {'load':>5} {'split':>7} {'aggr.':>7} {'ratio':>6}  best aggregated")
    for row in rows:
        print(
            f"{row['ttft_limit_ms']:6} {row['gap_limit_ms']:5} {row['rate']:5} {row['split']:7.2f} "
            f"{row['aggregated']:7.2f} {row['ratio'] or '-':>6}  {row['aggregated_plant']}"
        )


def main() -> None:
    """Measure, print, write."""
    parser = parser_of(__doc__, rounds=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--prefill", choices=("auto", "remote"), default="auto")
    options = parsed(parser)
    about = machine()
    precedence = Precedence(options.precedence)
    try:
        with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
            folder = Path(name)
            model = make_checkpoint(folder / "model", "llama", size="16m", dtype="bfloat16")
            runs = measure(options, model, folder, precedence)
    finally:
        precedence.end()
    rows = table(runs, options)
    show(rows)
    result = {
        "model": "llama 16m, bfloat16",
        "shapes": [vars(shape) for shape in SHAPES],
        "rates": options.rates,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "prefill": options.prefill,
        "precedence": options.precedence,
        "goodput": rows,
        "runs": [
            {**{key: one[key] for key in ("plant", "rate", "round")}, **summary(one["samples"])}  # type: ignore[arg-type]
            for one in runs
        ],
    }
    if not options.no_write:
        print(f"written to {write_result('vllm_goodput', result, about)}")


if __name__ == "__main__":
    main()
