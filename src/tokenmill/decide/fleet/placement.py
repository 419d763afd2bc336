"""Which engines, how many of each, in which roles: the plan for an ask on a fleet, with those that lose and
why.

Exists as the one entrance to placement. Small problems are solved by trying all, larger ones by a
mixed-integer linear program; both see the same problem. It must not know files, models' configurations or
tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec

from tokenmill.decide.fleet import enumeration, milp
from tokenmill.decide.fleet.assessment import assess, decoding
from tokenmill.decide.fleet.candidates import Candidate, Unfit
from tokenmill.decide.fleet.capacity import Curve
from tokenmill.decide.fleet.comparison import Keep, compare, score
from tokenmill.decide.fleet.flow import throughput
from tokenmill.decide.fleet.inventory import Inventory, NodeGroup
from tokenmill.decide.fleet.obstacles import refusal
from tokenmill.decide.fleet.options import SMALL_FLEET, Ask, Board, board_of
from tokenmill.decide.fleet.plans import Plan, PlantPlan
from tokenmill.decide.fleet.problem import Problem, Solution, undominated
from tokenmill.decide.fleet.queueing import bisect

MOST_TRIED: Final = 20_000
"""Combinations up to which all are tried: about a second."""

_SHRINK: Final = 0.995
"""Where a curve between its points promised more than there is, capacities are taken for so much less."""

_ROOMIER: Final = 0.95
"""Unequal workers that do not hold the level with what a router gives them may do so with a little more room:
capacities are taken for so much less."""

_ATTEMPTS: Final = 5

_AS_GOOD: Final = 0.99

_ROUGH_GAP: Final = 5e-3
"""Plants that are only there to be compared with need not be found to the last thousandth."""

_HALVINGS: Final = 9
"""To find a plant's rate to within a five hundredth."""

_LARGE: Final = 256
"""GPUs above which one search must do."""


def place(
    ask: Ask, candidates: Sequence[Candidate], inventory: Inventory, unfit: Sequence[Unfit] = ()
) -> Plan:
    """Return the best plant for ``ask``, the best of each other kind, and why those lose.

    Raises ConfigError when the fleet is too large to try all and no solver is installed.
    """
    board = (
        _pruned(board_of(ask, candidates, inventory))
        if candidates
        else Board(Problem(options=(), pools={}), ())
    )
    best = best_plant(ask, board)
    if best is None:
        binding, nearest = refusal(ask, candidates, inventory, unfit, best_plant)
        return Plan(best=None, binding=binding, nearest=nearest, notes=_notes(candidates))
    best = _looked_at_closely(ask, candidates, inventory, best)
    winner, runners_up = compare(ask, board, best, inventory, best_plant)
    return Plan(best=winner, runners_up=runners_up, notes=_notes(candidates))


def _looked_at_closely(
    ask: Ask, candidates: Sequence[Candidate], inventory: Inventory, best: PlantPlan
) -> PlantPlan:
    """In a large fleet few ways are looked at. A plant that costs no more than ``best`` has no more GPUs of
    any type than that money pays for: where so many are a small fleet, all ways are looked at in that."""
    if ask.rate_per_s is None or ask.objective != "cost" or inventory.gpus <= SMALL_FLEET:
        return best
    affordable: dict[str, NodeGroup] = {}
    for group in inventory.groups:
        node = group.dollars_per_hour * group.gpus_per_node
        if node <= 0 or group.availability == "reserved":
            return best
        nodes = min(group.nodes, math.ceil(best.dollars_per_hour / node))
        affordable[group.name] = msgspec.structs.replace(group, nodes=nodes)
    smaller = inventory.with_groups(list(affordable.values()))
    if smaller.gpus > SMALL_FLEET:
        return best
    engines = [msgspec.structs.replace(each, group=affordable[each.group.name]) for each in candidates]
    plant = best_plant(ask, _pruned(board_of(ask, engines, smaller)))
    return plant if plant is not None and plant.dollars_per_hour < best.dollars_per_hour else best


def best_plant(ask: Ask, board: Board, keep: Keep | None = None) -> PlantPlan | None:
    """Return the best plant that uses only the roles that ``keep`` lets through; None: there is none."""
    if keep is not None:
        board = board.only([keep(role) for role in board.roles])
    for _ in range(_ATTEMPTS):
        solution = _solution(board.problem, ask.rate_per_s, _ROUGH_GAP if keep else milp.GAP)
        if solution is None:
            return None
        solution = _trimmed(ask, board, solution)
        plant = assess(ask, board, solution)
        if plant is not None:
            return plant
        decoders = decoding(board, solution.counts)
        if len(decoders) > 1:
            return _evened_out(ask, board, solution, decoders)
        board = Board(_shrunk(board.problem, _SHRINK), board.roles)
    return None


def _evened_out(ask: Ask, board: Board, solution: Solution, decoders: Sequence[int]) -> PlantPlan | None:
    """Unequal workers did not hold the level with what a router gives them to decode: the best with more room
    or with only one of those kinds, or where as much as possible is asked for, all of them at the rate that
    they do hold."""
    eased = _at_what_it_holds(ask, board, solution) if ask.rate_per_s is None else _with_room(ask, board)
    plants = [eased]
    for decoder in decoders:
        keep = [role.prefill or index == decoder for index, role in enumerate(board.roles)]
        plants.append(best_plant(ask, board.only(keep)))
    return min(
        (plant for plant in plants if plant is not None), key=lambda plant: score(ask, plant), default=None
    )


def _with_room(ask: Ask, board: Board) -> PlantPlan | None:
    """The best plant that would serve the rate with a little less capacity, if it does hold."""
    if sum(board.problem.pools.values()) > _LARGE:
        return None
    roomier = Board(_shrunk(board.problem, _ROOMIER), board.roles)
    solution = _solution(roomier.problem, ask.rate_per_s, _ROUGH_GAP)
    return None if solution is None else assess(ask, board, _trimmed(ask, roomier, solution))


def _at_what_it_holds(ask: Ask, board: Board, solution: Solution) -> PlantPlan | None:
    def at(rate: float) -> PlantPlan | None:
        return assess(msgspec.structs.replace(ask, rate_per_s=rate), board, solution)

    rate = bisect(lambda rate: at(rate) is not None, 0.0, solution.rate, steps=_HALVINGS)
    plant = at(rate)
    return None if plant is None else msgspec.structs.replace(plant, most_rate_per_s=rate)


def _solution(problem: Problem, rate: float | None, gap: float) -> Solution | None:
    """Where as much as possible is asked for, the last hundredth is not worth any number of GPUs; in a
    large fleet the second search would cost more time than it is worth."""
    most = solve(problem, rate, gap)
    if rate is not None or most is None or sum(problem.pools.values()) > _LARGE:
        return most
    return solve(problem, most.rate * _AS_GOOD, gap) or most


def solve(problem: Problem, rate: float | None, gap: float = milp.GAP) -> Solution | None:
    """Return the cheapest solution that serves ``rate``, or with None the one that serves most."""
    if _small(problem):
        return enumeration.largest(problem) if rate is None else enumeration.cheapest(problem, rate)
    return milp.largest(problem, gap=gap) if rate is None else milp.cheapest(problem, rate, gap=gap)


def _small(problem: Problem) -> bool:
    return enumeration.size(problem, most=MOST_TRIED) <= MOST_TRIED


def _pruned(board: Board) -> Board:
    return board.only(undominated(board.problem))


def _trimmed(ask: Ask, board: Board, solution: Solution) -> Solution:
    """Leave out replicas that the rate does not need: a solver that stops within its gap may have some to
    spare."""
    counts = list(solution.counts)
    needed = solution.rate if ask.rate_per_s is None else ask.rate_per_s
    by_cost = sorted(range(len(counts)), key=lambda index: -board.problem.options[index].cost)
    for index in by_cost:
        while counts[index]:
            counts[index] -= 1
            if throughput(board.problem, counts).rate < needed * (1 - 1e-9):
                counts[index] += 1
                break
    return Solution(tuple(counts), throughput(board.problem, counts).rate, board.problem.cost(counts))


def _shrunk(problem: Problem, share: float) -> Problem:
    options = tuple(
        msgspec.structs.replace(
            option, curve=Curve(tuple((count, rate * share) for count, rate in option.curve.points))
        )
        for option in problem.options
    )
    return msgspec.structs.replace(problem, options=options)


def _notes(candidates: Sequence[Candidate]) -> tuple[str, ...]:
    notes = {f"{each.group.gpu.name}: {each.note}" for each in candidates if each.note}
    return tuple(sorted(notes))
