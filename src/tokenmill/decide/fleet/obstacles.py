"""Why an ask cannot be met, and what could be asked for in its place.

Exists because "infeasible" helps nobody. Each limit is lifted alone: the ones whose lifting makes the ask
feasible are those that bind. The nearest feasible asks are found by the same placement. It must not know
how that solves.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from tokenmill.decide.fleet.candidates import Candidate, Unfit
from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.inventory import Inventory, NodeGroup
from tokenmill.decide.fleet.options import Ask, Board, board_of
from tokenmill.decide.fleet.plans import Nearest, PlantPlan, parallel_words
from tokenmill.errors import ConfigError

BestPlant = Callable[[Ask, Board], PlantPlan | None]

_LIFTED: Final = 1e9
"""Milliseconds, tokens: as good as no limit."""

_CLOSE: Final = 0.04
"""Nearest limits are found to within this share."""


class Obstacle(NamedTuple):
    """A limit whose lifting alone makes the ask feasible: its name in an ask, and in words."""

    field: str
    words: str


class Refusal(NamedTuple):
    """What stands in the way, in words, and what could be asked for."""

    binding: tuple[str, ...]
    nearest: tuple[Nearest, ...]


def refusal(
    ask: Ask,
    candidates: Sequence[Candidate],
    inventory: Inventory,
    unfit: Sequence[Unfit],
    best_plant: BestPlant,
) -> Refusal:
    """Return why an ask that no plant can meet cannot be met."""
    if not candidates:
        return Refusal(_no_engine(unfit), ())
    most = None
    if ask.rate_per_s is not None:
        open_ask = msgspec.structs.replace(ask, rate_per_s=None)
        most = best_plant(open_ask, board_of(open_ask, candidates, inventory))
    found = [
        obstacle
        for obstacle, lifted_ask, lifted in _lifted(ask, candidates)
        if best_plant(lifted_ask, board_of(lifted_ask, lifted, inventory, quick=True)) is not None
    ]
    if ask.rate_per_s is not None and most is not None:
        # So many plants side by side serve it.
        words = f"GPUs: {inventory.gpus} are too few for {ask.rate_per_s:g} requests/s"
        found.append(Obstacle("gpus", words))
    several = "several limits at once: lifting one of them alone does not make the ask feasible"
    binding = tuple(obstacle.words for obstacle in found) or (several,)
    fields = {obstacle.field for obstacle in found}
    return Refusal(binding, _nearest_asks(ask, candidates, inventory, fields, most, best_plant))


def _no_engine(unfit: Sequence[Unfit]) -> tuple[str, ...]:
    by_memory = [each for each in unfit if each.lacking_gib > 0]
    if by_memory and len(by_memory) == len(unfit):
        least = min(by_memory, key=lambda each: each.lacking_gib)
        where = f"{least.gpu} {parallel_words(least.parallel)}"
        return (f"memory: even on {where} the model lacks {least.lacking_gib:.0f} GiB on each GPU",)
    return tuple(dict.fromkeys(f"{e.gpu} {parallel_words(e.parallel)}: {e.reason}" for e in unfit))


def _lifted(ask: Ask, candidates: Sequence[Candidate]) -> list[tuple[Obstacle, Ask, Sequence[Candidate]]]:
    """The ask with one limit lifted at a time."""
    promise = ask.promise
    roomy = [
        msgspec.structs.replace(
            each, replica=msgspec.structs.replace(each.replica, kv_capacity_tokens=_LIFTED)
        )
        for each in candidates
    ]
    ttft = Obstacle("ttft_ms", f"ttft_ms: {promise.ttft_ms:g} ms is too short")
    itl = Obstacle("itl_ms", f"itl_ms: {promise.itl_ms:g} ms is too short")
    return [
        (ttft, _with(ask, ttft_ms=_LIFTED), candidates),
        (itl, _with(ask, itl_ms=_LIFTED), candidates),
        (Obstacle("memory", "KV memory: too few sequences fit at a time"), ask, roomy),
    ]


def _nearest_asks(
    ask: Ask,
    candidates: Sequence[Candidate],
    inventory: Inventory,
    fields: set[str],
    most: PlantPlan | None,
    best_plant: BestPlant,
) -> tuple[Nearest, ...]:
    """Return asks that could be met, each with one thing changed as little as need be. ``most``: the plant
    that serves most of such requests."""
    nearest: list[Nearest] = []
    if most is not None:
        rate = math.floor(most.rate_per_s * 100) / 100
        words = f"{rate:g} requests/s on this fleet: {most.words}"
        nearest.append(Nearest(change="rate_per_s", value=rate, words=words))

    def holds(**promise: float) -> bool:
        easier = _with(ask, **promise)
        return best_plant(easier, board_of(easier, candidates, inventory, quick=True)) is not None

    if "ttft_ms" in fields and (ms := _least(ask.promise.ttft_ms, lambda value: holds(ttft_ms=value))):
        nearest.append(Nearest(change="ttft_ms", value=ms, words=f"{ms:g} ms to the first token"))
    if "itl_ms" in fields and (ms := _least(ask.promise.itl_ms, lambda value: holds(itl_ms=value))):
        nearest.append(Nearest(change="itl_ms", value=ms, words=f"{ms:g} ms between tokens"))
    if most is not None and ask.rate_per_s is not None:
        times = math.ceil(ask.rate_per_s / most.rate_per_s)
        nearest.append(_more_gpus(ask, times, most, candidates, inventory, best_plant))
    return tuple(nearest)


def _more_gpus(
    ask: Ask,
    times: int,
    most: PlantPlan,
    candidates: Sequence[Candidate],
    inventory: Inventory,
    best_plant: BestPlant,
) -> Nearest:
    """The best plant on a fleet so many times as large; where that needs a solver that is not there, so
    many of the one that serves most."""
    larger, more = _larger(candidates, inventory, times)
    plant = None
    with contextlib.suppress(ConfigError):
        plant = best_plant(ask, board_of(ask, more, larger, quick=True))
    if plant is None or plant.gpus > times * most.gpus:
        words = f"{times * most.gpus} GPUs: {times} times {most.words}"
        return Nearest(change="gpus", value=times * most.gpus, words=words)
    return Nearest(change="gpus", value=plant.gpus, words=f"{plant.gpus} GPUs: {plant.words}")


def _larger(
    candidates: Sequence[Candidate], inventory: Inventory, times: int
) -> tuple[Inventory, list[Candidate]]:
    """The same fleet with so many times as many nodes."""
    groups: dict[str, NodeGroup] = {
        group.name: msgspec.structs.replace(group, nodes=group.nodes * times) for group in inventory.groups
    }
    more = [msgspec.structs.replace(each, group=groups[each.group.name]) for each in candidates]
    return inventory.with_groups(list(groups.values())), more


def _least(asked: float, feasible: Callable[[float], bool]) -> float | None:
    """Return the least value above ``asked`` that is feasible, to two digits; None if none is up to 1000
    times as large."""
    high = asked
    while not feasible(high):
        high *= 2
        if high > asked * 1000:
            return None
    low = high / 2
    while high - low > _CLOSE * high:
        middle = (low + high) / 2
        if feasible(middle):
            high = middle
        else:
            low = middle
    digits = 10.0 ** (math.floor(math.log10(high)) - 1)
    return round(math.ceil(high / digits) * digits, 6)


def _with(ask: Ask, **promise: float) -> Ask:
    changed: Promise = msgspec.structs.replace(ask.promise, **promise)
    return msgspec.structs.replace(ask, promise=changed)
