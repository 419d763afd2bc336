"""What Tokenmill adds to a real vLLM server: the client through it, and the client talking to vLLM directly.

One aggregated server on a CPU, 16 connections, prompts of 128 tokens and answers of 64. Both sides take turns
before the very same process, Tokenmill attached to it by URL and gone again for the other side's turn.

    python -m benchmarks.vllm_front_door --python VENV/bin/python [--rounds 8]

VENV: made by ``scripts/vllm_cpu/install.py``. Writes benchmarks/results/vllm_front_door.json.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import machine, write_result
from benchmarks.real_vllm.asks import Alike
from benchmarks.real_vllm.command_line import parsed, parser_of
from benchmarks.real_vllm.doors import direct, tokenmill
from benchmarks.real_vllm.prompts import Writer
from benchmarks.real_vllm.running import Precedence
from benchmarks.real_vllm.servers import Wanted, serving
from benchmarks.real_vllm.turns import Rounds, added, ratio, summary, take_turns
from tokenmill.testing.checkpoints import make_checkpoint

LOAD = Alike(connections=16, prompt_tokens=128, output_tokens=64)
WARM_REQUESTS, REQUESTS = 2, 10
"""Of each connection."""

SHOWN = ("requests_per_s", "tokens_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")


def measure(options: argparse.Namespace, arguments: list[str], *, apart: bool) -> dict[str, Rounds]:
    """Run all rounds before one server with these arguments, too. ``apart``: its model has its own core."""
    precedence = Precedence(options.precedence)
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
        folder = Path(name)
        model = make_checkpoint(folder / "model", "llama", size="5m", dtype="bfloat16")
        writer = Writer(model)

        try:
            with serving(options.python, model, [Wanted(arguments=arguments)], folder) as servers:
                return take_turns(
                    servers,
                    {"direct": direct, "tokenmill": tokenmill(model, source=options.source)},
                    lambda seed: LOAD.asks(writer, seed, WARM_REQUESTS),
                    lambda seed: LOAD.asks(writer, seed, REQUESTS),
                    rounds=options.rounds,
                    folder=folder,
                    precedence=precedence,
                    apart=apart,
                )
        finally:
            precedence.end()


def comparison(found: dict[str, Rounds]) -> dict[str, object]:
    """What goes into the result."""
    ours, direct_ = found["tokenmill"], found["direct"]
    return {
        "throughput_ratio": ratio(ours, direct_, "tokens_per_s"),
        "added_ttft_p50_ms": added(ours, direct_, "ttft_p50_ms"),
        "added_itl_p50_ms": added(ours, direct_, "itl_p50_ms"),
        **{name: summary(rounds) for name, rounds in found.items()},
    }


def show(title: str, found: dict[str, Rounds], result: dict[str, object]) -> None:
    """Print the medians and the three figures."""
    print(f"\n{title}\n{'':12}" + "".join(f"{name:>16}" for name in SHOWN))
    for name, rounds in found.items():
        medians = summary(rounds)
        print(f"{name:12}" + "".join(f"{medians[key]['median']:16.2f}" for key in SHOWN))  # type: ignore[index]
    for name in ("throughput_ratio", "added_ttft_p50_ms", "added_itl_p50_ms"):
        print(f"{name}: {result[name]}")


VARIANTS: dict[str, tuple[list[str], bool]] = {
    "plain": ([], False),
    "apart": ([], True),
    "scale_out": (["--enable-scale-out"], False),
    "scale_out_apart": (["--enable-scale-out"], True),
}
"""Further arguments of the server, and whether its model has a core of its own, as it would have a GPU."""


def main() -> None:
    """Measure, print, write."""
    parser = parser_of(__doc__, rounds=8)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain", "apart"])
    options = parsed(parser)
    about = machine()
    results: dict[str, object] = {}
    for title in options.variants:
        arguments, apart = VARIANTS[title]
        found = measure(options, arguments, apart=apart)
        results[title] = result = comparison(found)
        show(title, found, result)
    shape = {
        "model": "llama 5m, bfloat16",
        **asdict(LOAD),
        "precedence": options.precedence,
    }
    if not options.no_write:
        print(f"written to {write_result('vllm_front_door', {**shape, **results}, about)}")


if __name__ == "__main__":
    main()
