"""Which GPUs each replica's engine sees. Plain functions; they know no machine and no process.

Engines that run on another machine are attached to; their GPUs are counted there, so that the command which
starts them can name them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Final
from urllib.parse import urlsplit

from tokenmill.spec.derive import TEXT_ENGINES
from tokenmill.spec.factory import Factory
from tokenmill.spec.mixes import EMBEDDED_ENGINES
from tokenmill.spec.stage import Stage

HERE: Final = ""
"""The machine on which the factory is brought up."""

Replica = tuple[str, int]
"""A stage's name and a replica's number."""

Gpus = Mapping[Replica, tuple[int, ...]]


def gpus_of_replica(stage: Stage) -> int:
    """How many GPUs one replica's engine needs; 0: it shares the worker's device, or is none of ours."""
    if stage.engine in EMBEDDED_ENGINES or stage.engine in TEXT_ENGINES or stage.device == "cpu":
        return 0
    ranks = stage.parallel
    return ranks.tp * ranks.pp * (1 if _attention_within(stage) else ranks.dp)


def _attention_within(stage: Stage) -> bool:
    """SGLang's data parallel attention divides the tensor ranks, and needs no further GPUs."""
    names = ("enable_dp_attention", "enable-dp-attention")
    return stage.engine == "sglang" and any(stage.engine_args.get(name, "false") != "false" for name in names)


def host_of(stage: Stage) -> str:
    """Return the machine that a stage's engines run on: ``HERE``, or the host that is attached to."""
    host = urlsplit(stage.attach).hostname or HERE
    return HERE if host in ("localhost", "::1") or host.startswith("127.") else host


def assign_gpus(factory: Factory, held: Gpus | None = None) -> dict[Replica, tuple[int, ...]]:
    """Return the GPUs of each replica that needs some. What engines have that were found running on this
    machine is not known.

    Those that a stage lists are its own affair. All others get the lowest free ones of their machine, stage
    by stage; ``held`` is what replicas have already, and they keep it where it still fits, so that none is
    restarted because another one came or went.
    """
    taken: dict[str, set[int]] = {}
    assigned: dict[Replica, tuple[int, ...]] = {}
    open_places: list[tuple[Stage, Replica]] = []
    for stage, replica in _replicas(factory):
        if stage.gpus:
            assigned[replica] = _listed(stage, replica[1])
            taken.setdefault(host_of(stage), set()).update(stage.gpus)
        else:
            open_places.append((stage, replica))
    for stage, replica in open_places:
        busy = taken.setdefault(host_of(stage), set())
        had = (held or {}).get(replica, ())
        if len(had) == gpus_of_replica(stage) and not busy.intersection(had):
            assigned[replica] = had
            busy.update(had)
    for stage, replica in open_places:
        if replica not in assigned:
            assigned[replica] = _free(gpus_of_replica(stage), taken[host_of(stage)])
    return assigned


def shared_gpus(factory: Factory, assigned: Gpus) -> set[tuple[str, int]]:
    """Return GPUs, each with its machine, that several replicas are given on purpose."""
    seen: set[tuple[str, int]] = set()
    shared: set[tuple[str, int]] = set()
    for stage, replica in _replicas(factory):
        own = {(host_of(stage), gpu) for gpu in assigned[replica]}
        shared |= own & seen
        seen |= own
    return shared


def _replicas(factory: Factory) -> Iterator[tuple[Stage, Replica]]:
    for stage in factory.stages:
        unknown = stage.attach and host_of(stage) == HERE and not stage.gpus
        if gpus_of_replica(stage) and not unknown:
            for number in range(stage.replicas):
                yield stage, (stage.name, number)


def _listed(stage: Stage, number: int) -> tuple[int, ...]:
    """The share of replica ``number`` in its stage's list; where that is too short it begins anew."""
    size = gpus_of_replica(stage)
    start = number * size % len(stage.gpus)
    return tuple(stage.gpus[start : start + size])


def _free(number: int, busy: set[int]) -> tuple[int, ...]:
    """Take the lowest GPUs that nobody has."""
    numbers = (gpu for gpu in count() if gpu not in busy)
    found = tuple(next(numbers) for _ in range(number))
    busy.update(found)
    return found
