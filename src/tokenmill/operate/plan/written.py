"""From a plan to a factory file: what the operator declared, with the stages that were planned.

Exists so that ``up``, ``render`` and ``simulate`` take a plan as it is. Plain functions; they do no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from tokenmill.decide.fleet.candidates import Candidate
from tokenmill.decide.fleet.plans import PlantPlan, StagePlan
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.protocol.ids import Role
from tokenmill.protocol.step_table import StepTable
from tokenmill.spec.derive import stages_of
from tokenmill.spec.factory import Factory, Model, Slo
from tokenmill.spec.mixes import EMBEDDED_ENGINES
from tokenmill.spec.stage import Parallel, Stage

_GPU_ENGINE = "vllm"
"""Takes the place of engines that run on one device."""


def planned_factory(
    factory: Factory, model: Model, slo: Slo, plant: PlantPlan, step_times: Mapping[str, str] | None = None
) -> Factory:
    """Return the factory with the plant's stages in place of the model's own; all else stays as declared.

    A planned stage takes settings that a plan does not speak of from a declared one of the same role. A mixed
    plant's router is told what share of prompts the plan counts on. ``step_times``: by planned stage, the
    file of step times that its workers tell.
    """
    files = step_times or {}
    own = stages_of(factory, model)
    others = [stage for stage in factory.stages if all(stage is not each for each in own)]
    planned = [_stage(each, _like(each, own), files.get(each.name, "")) for each in plant.stages]
    taken = {stage.name for stage in others}
    planned = [
        msgspec.structs.replace(stage, name=f"{stage.name}-planned") if stage.name in taken else stage
        for stage in planned
    ]
    share = plant.local_share if any(stage.role is Role.PREFILL for stage in plant.stages) else 0.0
    router = msgspec.structs.replace(factory.router, local_share=round(share, 3))
    return msgspec.structs.replace(factory, slo=slo, router=router, stages=[*others, *planned])


def tables_of(plant: PlantPlan, candidates: Sequence[Candidate]) -> dict[str, StepTable]:
    """Return by stage the step times that routers must know: of unequal workers that decode."""
    tables = {}
    for stage in plant.unequal:
        for each in candidates:
            times = each.replica.times
            found = each.group.name == stage.group and each.parallel == stage.parallel
            if found and isinstance(times, TableStepTime):
                tables[stage.name] = times.table
    return tables


def _like(planned: StagePlan, declared: list[Stage]) -> Stage:
    same = [stage for stage in declared if stage.role is planned.role]
    return next(iter([*same, *declared]), Stage(name=planned.name))


def _stage(planned: StagePlan, like: Stage, step_times: str) -> Stage:
    parallel = Parallel(
        tp=planned.parallel.tp, pp=planned.parallel.pp, dp=planned.parallel.dp, ep=planned.parallel.ep
    )
    computes_prompts = planned.ttft_ms is not None
    changed: dict[str, Any] = {
        "name": planned.name,
        "role": planned.role,
        "replicas": planned.replicas,
        "gpu": planned.gpu,
        "gpus": [],
        "cpus": [],
        "attach": "",
        "attach_key": "",
        "step_times": step_times,
        "parallel": parallel,
        "max_sequences": planned.max_sequences,
        "prefill_budget": planned.chunk_tokens if computes_prompts else 0,
        "token_budget": planned.chunk_tokens + planned.max_sequences if computes_prompts else 0,
    }
    embedded = like.engine in EMBEDDED_ENGINES
    if embedded and parallel != Parallel():
        changed |= {
            "engine": _GPU_ENGINE,
            "engine_args": {},
            "device": "auto",
            "kv_blocks": 0,
            "kv_memory_mb": 0,
        }
    return msgspec.structs.replace(like, **changed)
