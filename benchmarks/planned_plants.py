"""Plants as placement finds them, for benchmarks: the best of each kind on a fleet at a service level, and
its figures in a row.

Step times are the database's (``pip install 'tokenmill[perf]'``) where it knows the replica, else the
roofline's; every row says which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import msgspec

from tokenmill.decide.fleet.candidates import Candidate, Unfit, find_candidates
from tokenmill.decide.fleet.capacity import CHUNKS, Promise
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.fleet.options import Ask, Role, link_between
from tokenmill.decide.fleet.placement import place
from tokenmill.decide.fleet.plans import Plan, PlantPlan, parallel_words
from tokenmill.decide.fleet.stock import inventory_of_one
from tokenmill.decide.fleet.workload import Workload
from tokenmill.decide.perf.source import StepTimeSource
from tokenmill.profiles.models import load_shape
from tokenmill.profiles.sources import step_time_source
from tokenmill.spec.stage import Parallel

KINDS = ("aggregated", "disaggregated", "mixed")


@cache
def _source() -> StepTimeSource:
    """One for the whole run: it keeps what it has read."""
    return step_time_source()


class Fleet(NamedTuple):
    """GPUs in usual servers, and the engines of one model that fit on them."""

    inventory: Inventory
    candidates: list[Candidate]
    unfit: list[Unfit]

    def only(self, gpus: Sequence[str]) -> Fleet:
        """Return the part of the fleet that is of some types."""
        names = {CATALOGUE.gpu(name).name for name in gpus}
        groups = [group for group in self.inventory.groups if group.gpu.name in names]
        return Fleet(
            self.inventory.with_groups(groups),
            [each for each in self.candidates if each.group.gpu.name in names],
            [each for each in self.unfit if each.gpu in names],
        )

    def engine(self, gpu: str, tp: int) -> Candidate:
        """Return the engine on ``tp`` GPUs, tensor parallel alone. Raises StopIteration."""
        name, wanted = CATALOGUE.gpu(gpu).name, Parallel(tp=tp)
        return next(
            each for each in self.candidates if each.group.gpu.name == name and each.parallel == wanted
        )


def fleet_of(
    model: str,
    gpus: Mapping[str, int],
    *,
    longest: float,
    engine: str = "vllm",
    kv_dtype: str = "",
    utilization: float = 0.9,
    as_fp8: bool = False,
) -> Fleet:
    """Put so many GPUs of each type into usual servers, in one zone, at list prices.

    ``as_fp8``: the model in FP8 throughout, whatever its checkpoint holds.
    """
    groups = [
        group
        for name, number in gpus.items()
        for group in inventory_of_one(CATALOGUE.gpu(name), number).groups
    ]
    inventory = Inventory(groups, {})
    shape = load_shape(model)
    if as_fp8:
        formats = dict.fromkeys(("dtype", "attention_dtype", "expert_dtype", "kv_dtype"), "fp8")
        shape = msgspec.structs.replace(shape, **formats)
    found, unfit = find_candidates(
        shape,
        inventory,
        _source(),
        engine=engine,
        kv_dtype=kv_dtype,
        utilization=utilization,
        longest=longest,
    )
    return Fleet(inventory, found, unfit)


def planned(fleet: Fleet, workload: Workload, promise: Promise, rate_per_s: float | None = None) -> Plan:
    """Return the plan for a rate, or with None for as much as the fleet can serve."""
    ask = Ask(workload=workload, promise=promise, rate_per_s=rate_per_s)
    return place(ask, fleet.candidates, fleet.inventory, fleet.unfit)


def by_kind(plan: Plan) -> dict[str, PlantPlan]:
    """Return the best plant of each kind that there is."""
    plants = [plan.best] if plan.best is not None else []
    plants += [each.plant for each in plan.runners_up if each.what in KINDS and each.plant is not None]
    best: dict[str, PlantPlan] = {}
    for plant in plants:
        known = best.get(plant.kind)
        if known is None or plant.rate_per_s > known.rate_per_s:
            best[plant.kind] = plant
    return best


def row(plant: PlantPlan) -> dict[str, object]:
    """Return a plant's figures for a result file; tokens are those of answers."""
    return {
        "plant": plant.words,
        "requests_per_s": round(plant.rate_per_s, 3),
        "tokens_per_s_per_gpu": round(plant.tokens_per_s_per_gpu, 1),
        "ttft_ms": round(plant.ttft_ms, 1),
        "itl_ms": round(plant.itl_ms, 2),
        "gpus": plant.gpus,
        "dollars_per_hour": round(plant.dollars_per_hour, 2),
        "chunks": {stage.name: stage.chunk_tokens for stage in plant.stages if stage.ttft_ms is not None},
        "limits": {stage.name: stage.binding for stage in plant.stages},
        "step_times": sorted({stage.times_from for stage in plant.stages}),
    }


def split_row(
    fleet: Fleet,
    workload: Workload,
    promise: Promise,
    prefill_gpus: int,
    decode_gpus: int,
    *,
    tensor_parallel_only: bool = False,
) -> dict[str, object] | None:
    """Return the best plant in which so many GPUs of the one node prefill and so many decode: with
    ``tensor_parallel_only`` as one engine each. None: none holds the level."""
    ask = Ask(workload=workload, promise=promise)
    best: dict[str, object] | None = None
    for giver in fleet.candidates:
        for taker in fleet.candidates:
            if prefill_gpus % giver.gpus or decode_gpus % taker.gpus:
                continue
            whole = (giver.parallel, taker.parallel) == (Parallel(tp=prefill_gpus), Parallel(tp=decode_gpus))
            if tensor_parallel_only and not whole:
                continue
            link = link_between(fleet.inventory, giver, taker)
            handoff_ms = link.transfer_ms(workload.prompt_tokens * taker.kv_bytes_per_token)
            counts = prefill_gpus // giver.gpus, decode_gpus // taker.gpus
            first = Role(giver, True, 0.0, handoff_ms).capacity(counts[0], CHUNKS, ask)
            then = Role(taker, False, 0.0, handoff_ms).capacity(counts[1], CHUNKS, ask)
            rate = min(first.rate, then.rate)
            if rate > 0 and (best is None or rate > float(str(best["requests_per_s"]))):
                best = {
                    "plant": f"{counts[0]}x {parallel_words(giver.parallel)} prefill + "
                    f"{counts[1]}x {parallel_words(taker.parallel)} decode",
                    "requests_per_s": round(rate, 3),
                    "prefill_requests_per_s": round(first.rate, 3),
                    "decode_requests_per_s": round(then.rate, 3),
                    "limits": [first.binding, then.binding],
                    "tokens_per_s_per_gpu": round(
                        rate * workload.output_tokens / (prefill_gpus + decode_gpus), 1
                    ),
                    "step_times": sorted({giver.origin, taker.origin}),
                }
    return best


def together_row(
    fleet: Fleet, workload: Workload, promise: Promise, gpu: str, tp: int
) -> dict[str, object] | None:
    """Return as many aggregated engines of ``tp`` GPUs as there is room for; None: they don't hold the
    level."""
    engine = fleet.engine(gpu, tp)
    capacity = Role(engine, False, 1.0, 0.0).capacity(
        engine.most, CHUNKS, Ask(workload=workload, promise=promise)
    )
    if not capacity.rate:
        return None
    return {
        "plant": f"{engine.most}x {parallel_words(engine.parallel)} aggregated",
        "requests_per_s": round(capacity.rate, 3),
        "limits": [capacity.binding],
        "step_times": [engine.origin],
    }


def whole_prompts(
    fleet: Fleet, workload: Workload, promise: Promise, found: dict[str, object]
) -> dict[str, object]:
    """Return ``found`` with the aggregated plant replaced by the best one whose engines compute each prompt
    in one step, as engines without chunked prefill do."""
    ask, chunk = Ask(workload=workload, promise=promise), (float(workload.prompt_tokens),)
    best, rate = None, 0.0
    for candidate in fleet.candidates:
        count = candidate.most
        capacity = Role(candidate, False, 1.0, 0.0).capacity(count, chunk, ask)
        if capacity.rate > rate:
            rate = capacity.rate
            best = {
                "plant": f"{count}x {parallel_words(candidate.parallel)} aggregated, whole prompts",
                "requests_per_s": round(rate, 3),
                "tokens_per_s_per_fleet_gpu": round(rate * workload.output_tokens / fleet.inventory.gpus, 1),
                "limits": [capacity.binding],
            }
    changed = {**found, "aggregated": best}
    for kind in KINDS[1:]:
        other = found[kind]
        share = float(str(other["requests_per_s"])) / rate if isinstance(other, dict) and rate else None
        changed[f"{kind}_over_aggregated"] = None if share is None else round(share, 3)
    return changed
