"""From a factory to what each of its processes is told. Pure functions.

``registry``, ``run_dir`` and the like belong to the place where the factory runs; whoever starts the
processes fills them in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Final

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.spec.factory import Factory
from tokenmill.spec.front import Admission, Frontend, Migration, Router
from tokenmill.spec.problems import did_you_mean, one_of
from tokenmill.spec.process import FrontendConfig, WorkerConfig
from tokenmill.spec.stage import Parallel, Stage

_OWN_FIELDS: Final = frozenset({"name", "replicas", "gpu", "parallel", "cpus", "port"})
"""What a stage or frontend declares for the plant, not for the process."""

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


def to_worker_configs(factory: Factory) -> list[WorkerConfig]:
    """One for each worker, stage by stage."""
    return [
        worker_config(factory, stage, replica)
        for stage in factory.stages
        for replica in range(stage.replicas)
    ]


def worker_config(factory: Factory, stage: Stage, replica: int) -> WorkerConfig:
    """What replica ``replica`` of ``stage`` is told."""
    return WorkerConfig(
        model=factory.model.path,
        model_name=factory.model.name,
        stage=stage.name,
        replica=replica,
        log_level=factory.log.level,
        log_format=factory.log.format,
        **{name: getattr(stage.parallel, name) for name in Parallel.__struct_fields__},
        **{name: getattr(stage, name) for name in STAGE_KNOBS},
    )


def to_frontend_config(factory: Factory) -> FrontendConfig:
    """What each front door is told; where it listens beside the declared port is the plant's business."""
    declared = factory.frontend
    return FrontendConfig(
        model=factory.model.path,
        model_name=factory.model.name,
        port=declared.port,
        **{f"router_{name}": getattr(factory.router, name) for name in Router.__struct_fields__},
        log_level=factory.log.level,
        log_format=factory.log.format,
        **{name: getattr(declared, name) for name in FRONTEND_KNOBS},
        **{f"admission_{name}": getattr(factory.admission, name) for name in Admission.__struct_fields__},
        **{f"migration_{name}": getattr(factory.migration, name) for name in Migration.__struct_fields__},
    )


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
