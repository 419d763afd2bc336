"""What all workers of a factory are told."""

from __future__ import annotations

from tokenmill.spec.derive import worker_config
from tokenmill.spec.factory import Factory
from tokenmill.spec.process import WorkerConfig


def worker_configs(factory: Factory) -> list[WorkerConfig]:
    """One for each worker, stage by stage."""
    return [
        worker_config(factory, stage, replica)
        for stage in factory.stages
        for replica in range(stage.replicas)
    ]
