"""The best plant of each kind and of each type of GPU, at the same service level: which wins, and why
others lose.

Exists because an operator wants to know what was weighed. Of plants that are as good as equal the simplest
wins. It must not know how a best plant is found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.fleet.options import RESERVED_COST, Ask, Board, Role
from tokenmill.decide.fleet.plans import PlantPlan, RunnerUp
from tokenmill.decide.fleet.verdicts import why_it_loses

Keep = Callable[[Role], bool]
BestPlant = Callable[[Ask, Board, Keep | None], PlantPlan | None]

_AS_GOOD: Final = 0.01
"""Plants that are worse by no more than this share count as equal."""


def compare(
    ask: Ask, board: Board, best: PlantPlan, inventory: Inventory, best_plant: BestPlant
) -> tuple[PlantPlan, tuple[RunnerUp, ...]]:
    """Return the winner, ``best`` or a simpler one that is as good, and the others in the order of merit."""
    plants, none = _plants(ask, board, best, inventory, best_plant)
    limit = score(ask, best) + _AS_GOOD * abs(score(ask, best))
    good = [plant for plant in plants.values() if score(ask, plant) <= limit]
    winner = min(good, key=lambda plant: (len(plant.stages), score(ask, plant)))
    runners_up = [
        RunnerUp(what=what, plant=plant, why=why_it_loses(ask, winner, plant))
        for what, plant in sorted(plants.items(), key=lambda item: score(ask, item[1]))
        if plant is not winner
    ]
    runners_up += [RunnerUp(what=what, plant=None, why=why) for what, why in none.items()]
    return winner, tuple(runners_up)


def score(ask: Ask, plant: PlantPlan) -> float:
    """Return what is to be least: the objective, or where as much as possible is asked for, the rate below
    0."""
    if ask.rate_per_s is None:
        return -plant.rate_per_s
    if ask.objective == "gpus":
        return float(plant.gpus)
    if ask.objective == "power":
        return plant.power_w
    # What is reserved is paid for in any case; of plants that add nothing the smaller one.
    return plant.added_dollars_per_hour + RESERVED_COST * plant.dollars_per_hour


def _plants(
    ask: Ask, board: Board, best: PlantPlan, inventory: Inventory, best_plant: BestPlant
) -> tuple[dict[str, PlantPlan], dict[str, str]]:
    """All plants to compare by what they are the best of, each once; and what there is none of, and why."""
    plants: dict[str, PlantPlan] = {best.kind: best}
    missing: dict[str, tuple[Board, Keep]] = {}
    seen = {best.words}
    for what, keep, needs in _restrictions(inventory):
        known = plants.get(what)
        if known is best:
            continue
        restricted = board.requiring(needs)
        plant = best_plant(ask, restricted, keep)
        if plant is None:
            missing.setdefault(what, (restricted, keep))
        elif plant.words not in seen and (what != "mixed" or plant.kind == what):
            seen.add(plant.words)
            if known is None or score(ask, plant) < score(ask, known):
                plants[what] = plant
    none = {
        what: _why_none(ask, restricted, keep, best_plant)
        for what, (restricted, keep) in missing.items()
        if what not in plants
    }
    return plants, none


class _Restriction(NamedTuple):
    """``needs``: of what each lets through a plant must have a replica."""

    what: str
    keep: Keep
    needs: tuple[Keep, ...] = ()


def _restrictions(inventory: Inventory) -> list[_Restriction]:
    gpus = sorted({group.gpu.name for group in inventory.groups})
    kinds = [
        _Restriction("aggregated", lambda role: not role.prefill and role.local_share == 1),
        _Restriction("disaggregated", lambda role: role.prefill or role.local_share == 0),
        _Restriction("mixed", lambda _: True, (_computes_prompts, _is_sent_prompts)),
        # Where the best of those has a part that stands idle, it is of another kind.
        _Restriction("mixed", lambda role: role.prefill or 0 < role.local_share < 1),
    ]
    return kinds + ([_Restriction(f"{gpu} only", _on(gpu)) for gpu in gpus] if len(gpus) > 1 else [])


def _computes_prompts(role: Role) -> bool:
    return not role.prefill and role.local_share > 0


def _is_sent_prompts(role: Role) -> bool:
    return not role.prefill and role.local_share < 1


def _on(gpu: str) -> Keep:
    return lambda role: role.candidate.group.gpu.name == gpu


def _why_none(ask: Ask, board: Board, keep: Keep, best_plant: BestPlant) -> str:
    if ask.rate_per_s is not None:
        most = best_plant(msgspec.structs.replace(ask, rate_per_s=None), board, keep)
        if most is not None:
            return f"serves at most {most.rate_per_s:.3g} requests/s within the service level"
    return "no engine on it holds the service level"
