"""From a plan to a factory file: what the operator declared, with the stages that were planned.

Exists so that ``up``, ``render`` and ``simulate`` take a plan as it is. Plain functions; they do no I/O.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenmill.decide.fleet.plans import PlantPlan, StagePlan
from tokenmill.spec.derive import stages_of
from tokenmill.spec.factory import Factory, Model, Slo
from tokenmill.spec.mixes import EMBEDDED_ENGINES
from tokenmill.spec.stage import Parallel, Stage

_GPU_ENGINE = "vllm"
"""Takes the place of engines that run on one device."""


def planned_factory(factory: Factory, model: Model, slo: Slo, plant: PlantPlan) -> Factory:
    """Return the factory with the plant's stages in place of the model's own; all else stays as declared.

    A planned stage takes settings that a plan does not speak of from a declared one of the same role.
    """
    own = stages_of(factory, model)
    others = [stage for stage in factory.stages if all(stage is not each for each in own)]
    planned = [_stage(each, _like(each, own)) for each in plant.stages]
    taken = {stage.name for stage in others}
    planned = [
        msgspec.structs.replace(stage, name=f"{stage.name}-planned") if stage.name in taken else stage
        for stage in planned
    ]
    return msgspec.structs.replace(factory, slo=slo, stages=[*others, *planned])


def _like(planned: StagePlan, declared: list[Stage]) -> Stage:
    same = [stage for stage in declared if stage.role is planned.role]
    return next(iter([*same, *declared]), Stage(name=planned.name))


def _stage(planned: StagePlan, like: Stage) -> Stage:
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
