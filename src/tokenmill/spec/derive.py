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
from tokenmill.spec.factory import Factory, Frontend, Stage
from tokenmill.spec.problems import did_you_mean, one_of
from tokenmill.spec.process import FrontendConfig, WorkerConfig

_OWN_FIELDS: Final = frozenset({"name", "replicas", "gpu", "parallel", "cpus", "port"})
"""What a stage or frontend declares for the plant, not for the process."""

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
        **{name: getattr(stage, name) for name in STAGE_KNOBS},
    )


def to_frontend_config(factory: Factory, replica: int = 0) -> FrontendConfig:
    """What front door ``replica`` is told; it listens on the declared port plus its number."""
    declared = factory.frontend
    return FrontendConfig(
        model=factory.model.path,
        model_name=factory.model.name,
        port=declared.port + replica if declared.port else 0,
        router_policy=factory.router.policy,
        log_level=factory.log.level,
        log_format=factory.log.format,
        **{name: getattr(declared, name) for name in FRONTEND_KNOBS},
    )


def scaled(factory: Factory, replicas: Mapping[str, int]) -> Factory:
    """Return the factory with other numbers of replicas, by stage name. Raises ConfigError."""
    names = [stage.name for stage in factory.stages]
    for name, number in replicas.items():
        if name not in names:
            hint = did_you_mean(name, names) or f" It has {one_of(names)}."
            raise ConfigError(f'{factory.metadata.name} has no stage "{name}".{hint}')
        if number < 0:
            raise ConfigError(f"{name}={number}: replicas must be 0 or more")
    stages = [
        msgspec.structs.replace(stage, replicas=replicas.get(stage.name, stage.replicas))
        for stage in factory.stages
    ]
    return msgspec.structs.replace(factory, stages=stages)
