"""From a factory to what each of its processes is told. Pure functions.

``registry``, ``run_dir`` and the like belong to the place where the factory runs; whoever starts the
processes fills them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Final

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.spec.factory import Factory, Model
from tokenmill.spec.front import Admission, Frontend, Migration, Router
from tokenmill.spec.models import ALL_MODELS, model_name
from tokenmill.spec.problems import did_you_mean, one_of
from tokenmill.spec.process import FrontendConfig, WorkerConfig
from tokenmill.spec.stage import Parallel, Price, Stage

_OWN_FIELDS: Final = frozenset(
    {"name", "replicas", "gpu", "parallel", "gpus", "cpus", "port", "model", "price"}
)
"""What a stage or frontend declares for the plant, not for the process."""

TEXT_ENGINES: Final = ("openai",)
"""Engines that take text and give text; all others take token ids."""

FRONTEND: Final = "frontend"
"""What the front doors are called where stages are named."""

STAGE_KNOBS: Final = tuple(
    name
    for name in Stage.__struct_fields__
    if name in {item.name for item in fields(WorkerConfig)} - _OWN_FIELDS
)
FRONTEND_KNOBS: Final = tuple(
    name
    for name in Frontend.__struct_fields__
    if name in {item.name for item in fields(FrontendConfig)} - _OWN_FIELDS
)


def worker_config(factory: Factory, stage: Stage, replica: int) -> WorkerConfig:
    """What replica ``replica`` of ``stage`` is told."""
    model = model_of(factory, stage)
    return WorkerConfig(
        model=model.path,
        model_name=model.name,
        stage=stage.name,
        replica=replica,
        log_level=factory.log.level,
        log_format=factory.log.format,
        **{name: getattr(stage.parallel, name) for name in Parallel.__struct_fields__},
        **{f"price_{name}": getattr(stage.price, name) for name in Price.__struct_fields__},
        **{name: getattr(stage, name) for name in STAGE_KNOBS},
    )


def models_of(factory: Factory) -> list[Model]:
    """What a factory serves: one model, or several that have names."""
    return factory.models or [factory.model]


def model_of(factory: Factory, stage: Stage) -> Model:
    """Which model a stage serves."""
    models = models_of(factory)
    return next((model for model in models if model.name == stage.model), models[0])


def stages_of(factory: Factory, model: Model) -> list[Stage]:
    """Which stages serve a model."""
    return [stage for stage in factory.stages if model_of(factory, stage) is model]


def is_text_model(factory: Factory, model: Model) -> bool:
    """Whether a model's workers take text, so that nothing of it need be on this machine."""
    stages = stages_of(factory, model)
    return bool(stages) and all(stage.engine in TEXT_ENGINES for stage in stages)


def names_of_models(factory: Factory) -> list[str]:
    """What clients call the models; "*" for all that a server lists."""
    return [
        (model.name or ALL_MODELS) if is_text_model(factory, model) else model_name(model.name, model.path)
        for model in models_of(factory)
    ]


def to_frontend_config(factory: Factory) -> FrontendConfig:
    """What each front door is told; where it listens beside the declared port is the plant's business."""
    declared = factory.frontend
    return FrontendConfig(
        **_models(factory),
        port=declared.port,
        **{f"router_{name}": getattr(factory.router, name) for name in Router.__struct_fields__},
        slo_itl_ms=factory.slo.itl_ms,
        log_level=factory.log.level,
        log_format=factory.log.format,
        **{name: getattr(declared, name) for name in FRONTEND_KNOBS},
        **{f"admission_{name}": getattr(factory.admission, name) for name in Admission.__struct_fields__},
        **{f"migration_{name}": getattr(factory.migration, name) for name in Migration.__struct_fields__},
    )


def _models(factory: Factory) -> dict[str, Any]:
    """What a front door is told of the models."""
    models = models_of(factory)
    texts = [model.name or ALL_MODELS for model in models if is_text_model(factory, model)]
    rest = [model for model in models if not is_text_model(factory, model)]
    if len(rest) == 1 and not texts:
        model = rest[0]
        return {"model": model.path, "model_name": model.name, "tool_parser": model.tool_parser}
    parsers = {model.name: model.tool_parser for model in rest if model.tool_parser != "auto"}
    paths = {model.name: model.path for model in rest}
    return {"model_paths": paths, "text_models": texts, "model_tool_parsers": parsers}


def scaled(factory: Factory, replicas: Mapping[str, int]) -> Factory:
    """Return the factory with other numbers of replicas, by stage name or "frontend". Raises ConfigError."""
    names = [stage.name for stage in factory.stages]
    front = factory.frontend
    for name, number in replicas.items():
        if name not in names and name != FRONTEND:
            hint = did_you_mean(name, names) or f" It has {one_of(names)}."
            raise ConfigError(f'{factory.metadata.name} has no stage "{name}".{hint}')
        if number < 0:
            raise ConfigError(f"{name}={number}: replicas must be 0 or more")
    stages = [
        msgspec.structs.replace(stage, replicas=replicas.get(stage.name, stage.replicas))
        for stage in factory.stages
    ]
    if FRONTEND not in names:
        front = msgspec.structs.replace(front, replicas=replicas.get(FRONTEND, front.replicas))
    return msgspec.structs.replace(factory, stages=stages, frontend=front)
