"""Why one plant loses against another, in a sentence. It must not search or compute capacities."""

from __future__ import annotations

from typing import Final

from tokenmill.decide.fleet.options import Ask
from tokenmill.decide.fleet.plans import PlantPlan, StagePlan, parallel_words, role_words

LIMITS: Final = {
    "ttft": "the time to first token",
    "itl": "the time between tokens",
    "kv memory": "its KV memory",
    "batch limit": "the largest batch that engines take",
    "rate": "how fast it computes prompts",
}
"""What keeps a group of workers from serving more, by the name of the limit."""

_SAME: Final = 5e-4


def why_it_loses(ask: Ask, best: PlantPlan, plant: PlantPlan) -> str:
    """Say by how much ``plant`` is worse than ``best``, and which of its stages makes it so."""
    stage = max(plant.stages, key=lambda each: (each.load, each.gpus))
    words, better = _difference(ask, best, plant)
    if better and len(plant.stages) > len(best.stages):
        return f"{words}, with {len(plant.stages)} groups of workers in place of {len(best.stages)}"
    return f"{words}; {_limit(stage)}"


def _difference(ask: Ask, best: PlantPlan, plant: PlantPlan) -> tuple[str, bool]:
    """In words, and whether ``plant`` is at least as good."""
    if ask.rate_per_s is None:
        share = plant.rate_per_s / best.rate_per_s - 1
        word, what = "serves", ""
    else:
        word, what, own, least = {
            "cost": ("costs", "", plant.added_dollars_per_hour, best.added_dollars_per_hour),
            "gpus": ("takes", " GPUs", float(plant.gpus), float(best.gpus)),
            "power": ("draws", " power", plant.power_w, best.power_w),
        }[ask.objective]
        if least <= 0 < own:
            return f"costs ${own:.2f}/h beside what is reserved", False
        share = own / least - 1 if least > 0 else 0.0
    if abs(share) < _SAME:
        return f"{word} the same{what}", True
    better = (share > 0) == (ask.rate_per_s is None)
    digits = 1 if abs(share) < 0.01 else 0
    return f"{word} {abs(share):.{digits}%} {'more' if share > 0 else 'less'}{what}", better


def _limit(stage: StagePlan) -> str:
    per_gpu = stage.rate_per_s / stage.load / stage.gpus if stage.load else 0.0
    where = f"{stage.gpu} {parallel_words(stage.parallel)} ({role_words(stage)})"
    return f"{where} is held to {per_gpu:.3g} requests/s a GPU by {LIMITS[stage.binding]}"
