"""Doors in turn before the same running servers, and how their figures compare pair by pair.

Exists so that all comparisons take turns alike: each door is opened, warmed and loaded alone, the order
turning round each time, and a figure is compared with the other side's of the same round.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.machine import spread
from benchmarks.real_vllm.doors import Door, Opener
from benchmarks.real_vllm.load import Ask, Result, drive
from benchmarks.real_vllm.running import Precedence
from benchmarks.real_vllm.servers import Hits, Server
from benchmarks.side_by_side import processes

Rounds = dict[str, list[float]]
"""A side's figures by name, one entry a round."""

Work = Callable[[str], Sequence[Sequence[Ask]]]
"""Makes what each connection asks for, from a seed: another seed gives prompts that nobody has seen."""

ENGINE_CORE = "VLLM::EngineCore"
"""How the process in which vLLM runs the model calls itself."""

SETTLE_S = 0.5
"""After the warm-up, for what it still moves: events, metrics."""


def take_turns(
    servers: Sequence[Server],
    doors: Mapping[str, Opener],
    warm: Work,
    work: Work,
    *,
    rounds: int,
    folder: Path,
    precedence: Precedence,
    apart: bool = False,
) -> dict[str, Rounds]:
    """Load each door ``rounds`` times; returns the figures by door.

    ``apart``: the server's model runs on a core of its own, as it would on a GPU, and all else on the others.
    """
    figures: dict[str, Rounds] = {name: {} for name in doors}
    for server in servers:
        precedence.give(processes.tree(server.process.pid))
        if apart:
            set_apart([*processes.tree(server.process.pid), os.getpid()])
    for number in range(rounds):
        names = list(doors) if number % 2 == 0 else list(list(doors)[::-1])
        for name in names:
            with doors[name](servers, folder) as door:
                if door.process is not None:
                    precedence.give(processes.tree(door.process.pid))
                    if apart:
                        set_apart(processes.tree(door.process.pid))
                one = _turn(servers, door, warm(f"warm {number} {name}"), work(f"{number} {name}"))
            for key, value in one.items():
                figures[name].setdefault(key, []).append(value)
            print(f"{number} {name:28} " + "  ".join(f"{k} {v:.4g}" for k, v in one.items()), flush=True)
    os.sched_setaffinity(0, os.sched_getaffinity(1))
    return figures


def _turn(
    servers: Sequence[Server], door: Door, warm: Sequence[Sequence[Ask]], work: Sequence[Sequence[Ask]]
) -> dict[str, float]:
    """Warm the door up, empty the servers' prefix caches, load it; each server must have had a part in it."""
    drive(door.port, warm)
    time.sleep(SETTLE_S)
    for server in servers:
        server.forget_prefixes()
    hits = Hits.of(servers)
    served = [server.metric("vllm:prompt_tokens_total") for server in servers]
    cpu_s = door.cpu_s()
    result: Result = drive(door.port, work)
    cpu_s = door.cpu_s() - cpu_s
    share = Hits.of(servers).share_since(hits)
    for server, before in zip(servers, served, strict=True):
        if server.metric("vllm:prompt_tokens_total") == before:
            raise RuntimeError(f"{server.url} ({server.wanted.role}) was not asked for anything")
    tokens = sum(answer.tokens for answer in result.answers)
    return {**result.figures(), "prefix_hit_share": share, "door_cpu_us_a_token": 1e6 * cpu_s / tokens}


def set_apart(these: Sequence[int]) -> None:
    """Give the processes in which a model runs the first core, and these others the rest."""
    first, *others = sorted(os.sched_getaffinity(1))
    for process in these:
        runs_model = ENGINE_CORE in " ".join(processes.command(process))
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {first} if runs_model else others)


def summary(rounds: Rounds) -> dict[str, object]:
    """Median and spread of each figure."""
    return {name: spread(values) for name, values in rounds.items()}


def added(ours: Rounds, theirs: Rounds, name: str) -> dict[str, float]:
    """What ours has more than theirs, round by round."""
    return spread([a - b for a, b in zip(ours[name], theirs[name], strict=True)])


def ratio(ours: Rounds, theirs: Rounds, name: str) -> dict[str, float]:
    """Ours divided by theirs, round by round."""
    return spread([a / b if b else 0.0 for a, b in zip(ours[name], theirs[name], strict=True)])


def median(rounds: Rounds, name: str) -> float:
    """Over the rounds."""
    return statistics.median(rounds[name])
