"""Tokenmill beside vllm-router and sglang-router, before the very same two real vLLM servers.

Conversations on a CPU: groups of them share a system prompt, and each turn sends all that was said before.
Each door takes its turn alone; its prompts are new to the servers and to it, of the same lengths as the
others', and the servers' prefix caches are emptied before. Prefix hits are what the servers themselves count.

    python -m benchmarks.vllm_routers --python VENV/bin/python --routers OTHER_VENV [--rounds 4]

VENV: made by ``scripts/vllm_cpu/install.py``; OTHER_VENV: an environment with vllm-router 0.1.17 and
sglang-router 0.3.2. Writes benchmarks/results/vllm_routers.json.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

from benchmarks.machine import machine, write_result
from benchmarks.real_vllm.command_line import parsed, parser_of
from benchmarks.real_vllm.doors import sglang_router, tokenmill, vllm_router
from benchmarks.real_vllm.load import Ask
from benchmarks.real_vllm.prompts import Writer
from benchmarks.real_vllm.running import Precedence
from benchmarks.real_vllm.servers import Wanted, serving
from benchmarks.real_vllm.turns import Rounds, ratio, summary, take_turns
from tokenmill.testing.checkpoints import make_checkpoint

CONNECTIONS = 16
GROUPS = 8
POPULARITY = [1 / (rank + 1) for rank in range(GROUPS)]
"""System prompts are not equally popular: the second is asked for half as often as the first, and so on."""

CONVERSATIONS = 3
"""Of each connection, one after the other."""

TURNS = 4
SYSTEM_TOKENS, QUESTION_TOKENS, ANSWER_TOKENS = 1024, 128, 32
KV_MEMORY_MB = 64
"""Of each server: 32,768 tokens, about what all conversations that are under way need together."""

OURS = {
    "round robin": ("tokenmill round-robin",),
    "cache-aware": ("tokenmill kv", "tokenmill kv, hits first"),
}
THEIRS = {
    "round robin": ("vllm-router round_robin", "sglang-router round_robin"),
    "cache-aware": ("vllm-router cache_aware", "vllm-router kv_aware", "sglang-router cache_aware"),
}
HITS_FIRST = {"decode_stall_ms": 2.0, "prefill": 4.0}
"""A tenth of what a prompt takes whose conversation is cached (20 ms here, not the 100 ms that the usual
weight is for), and twice the usual weight of what is computed anew: on two cores that both servers and the
doors share, an even load is worth little and saved work much."""

SHOWN = ("requests_per_s", "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "prefix_hit_share")
COMPARED = ("requests_per_s", "ttft_p99_ms", "prefix_hit_share")


def conversations(writer: Writer, seed: str, each: int = CONVERSATIONS) -> list[list[Ask]]:
    """What each connection sends: turn after turn of its conversations. What the other side says in them is
    made up beforehand, so that all doors are asked the same."""
    systems = [writer.text(SYSTEM_TOKENS, f"{seed} system {group}") for group in range(GROUPS)]
    rng = random.Random(0)  # which group comes when is the same for all
    clients = []
    for client in range(CONNECTIONS):
        asks = []
        for number in range(each):
            said = rng.choices(systems, POPULARITY)[0]
            for turn in range(TURNS):
                name = f"{seed} {client} {number} {turn}"
                said = f"{said} {writer.text(QUESTION_TOKENS, f'{name} question')}"
                asks.append(Ask(said, ANSWER_TOKENS))
                said = f"{said} {writer.text(ANSWER_TOKENS, f'{name} answer')}"
        clients.append(asks)
    return clients


def comparison(found: dict[str, Rounds]) -> dict[str, object]:
    """Ours against each of theirs, round by round."""
    result: dict[str, object] = {}
    for kind, doors in OURS.items():
        for ours, theirs in itertools.product(doors, THEIRS[kind]):
            if ours in found and theirs in found:
                result[f"{ours} / {theirs}"] = {
                    name: ratio(found[ours], found[theirs], name) for name in COMPARED
                }
    return result


def show(found: dict[str, Rounds], ratios: dict[str, object]) -> None:
    """Print medians and ratios."""
    print(f"\n{'':28}" + "".join(f"{name:>18}" for name in SHOWN))
    for name, rounds in found.items():
        medians = summary(rounds)
        print(f"{name:28}" + "".join(f"{medians[key]['median']:18.3f}" for key in SHOWN))  # type: ignore[index]
    for name, figures in ratios.items():
        print(f"{name}: {figures}")


def main() -> None:
    """Measure, print, write."""
    parser = parser_of(__doc__, rounds=4)
    parser.add_argument("--routers", type=Path, required=True, help="environment with the two routers")
    parser.add_argument("--only", nargs="+", help="doors, by name")
    parser.add_argument(
        "--server-arguments", default="--enable-scale-out", help="further arguments of both servers"
    )
    options = parsed(parser)
    about = machine()
    precedence = Precedence(options.precedence)
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as name:
        folder = Path(name)
        model = make_checkpoint(folder / "model", "llama", size="5m", dtype="bfloat16")
        writer = Writer(model)
        doors = {
            "tokenmill round-robin": tokenmill(model, "round-robin", source=options.source),
            "vllm-router round_robin": vllm_router(options.routers, "round_robin"),
            "sglang-router round_robin": sglang_router(options.routers, "round_robin"),
            "tokenmill kv": tokenmill(model, "kv", source=options.source),
            "tokenmill kv, hits first": tokenmill(model, "kv", weights=HITS_FIRST, source=options.source),
            "vllm-router cache_aware": vllm_router(options.routers, "cache_aware"),
            "vllm-router kv_aware": vllm_router(options.routers, "kv_aware"),
            "sglang-router cache_aware": sglang_router(options.routers, "cache_aware"),
        }
        wanted = [Wanted(kv_memory_mb=KV_MEMORY_MB, arguments=options.server_arguments.split())] * 2
        try:
            with serving(options.python, model, wanted, folder) as servers:
                found = take_turns(
                    servers,
                    {name: door for name, door in doors.items() if name in (options.only or doors)},
                    lambda seed: conversations(writer, seed, each=1),
                    lambda seed: conversations(writer, seed),
                    rounds=options.rounds,
                    folder=folder,
                    precedence=precedence,
                )
        finally:
            precedence.end()
    ratios = comparison(found)
    show(found, ratios)
    shape = {
        "model": "llama 5m, bfloat16",
        "workload": f"{CONNECTIONS} connections, {CONVERSATIONS} conversations each of {TURNS} turns, "
        f"{GROUPS} system prompts of {SYSTEM_TOKENS} tokens (popularity 1/rank), "
        f"questions of {QUESTION_TOKENS}, answers of {ANSWER_TOKENS}",
        "kv_memory_mb": KV_MEMORY_MB,
        "server_arguments": options.server_arguments,
        "precedence": options.precedence,
    }
    result = {**shape, "ratios": ratios, **{name: summary(rounds) for name, rounds in found.items()}}
    if not options.no_write:
        print(f"written to {write_result('vllm_routers', result, about)}")


if __name__ == "__main__":
    main()
