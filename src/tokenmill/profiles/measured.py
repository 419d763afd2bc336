"""Replicas whose step times were measured on the very kind of device.

Exists so that plans prefer what an operator has seen over what tables say. It must not read files.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from tokenmill.decide.fleet.catalogue import Catalogue
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.perf.estimates import fit_of
from tokenmill.decide.perf.memory import MemoryFit
from tokenmill.decide.perf.profile import Profile
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, ReplicaTimes
from tokenmill.decide.perf.table import StepTable, TableStepTime


class MeasuredSource:
    """A ``StepTimeSource`` over profiles; of several that fit, the last one given."""

    def __init__(self, profiles: Sequence[Profile], catalogue: Catalogue = CATALOGUE) -> None:
        self._profiles = list(reversed(profiles))
        self._catalogue = catalogue

    def replica(self, ask: ReplicaAsk) -> ReplicaTimes | NoTimes:
        """See ``StepTimeSource``."""
        for profile in self._profiles:
            if self._is_of(profile, ask):
                memory = fit_of(ask)
                return ReplicaTimes(
                    times=TableStepTime(_completed(profile.table, memory)),
                    memory=memory,
                    origin="measured",
                    expected_error=profile.fit.mean_error,
                    note=f"measured {profile.taken}",
                )
        return NoTimes(reason=f"no profile of {ask.shape.name} on {ask.gpu.name} with {ask.engine}")

    def _is_of(self, profile: Profile, ask: ReplicaAsk) -> bool:
        gpu = self._catalogue.find(profile.gpu or profile.machine.gpu)
        parallel = ask.parallel
        return (
            gpu is not None
            and gpu.name == ask.gpu.name
            and profile.engine == ask.engine
            and _last(profile.model) == _last(ask.shape.name)
            and (profile.tp, profile.pp, profile.dp) == (parallel.tp, parallel.pp, parallel.dp)
            and (profile.ep > 1) == (parallel.ep > 1)
        )


def _completed(table: StepTable, memory: MemoryFit) -> StepTable:
    """Room and size of the cache as reckoned, where the profile does not know them."""
    return msgspec.structs.replace(
        table,
        kv_bytes_per_token=table.kv_bytes_per_token or memory.kv_bytes_per_token,
        kv_capacity_tokens=table.kv_capacity_tokens or memory.kv_capacity_tokens,
    )


def _last(model: str) -> str:
    """A model's name without its owner or folder: that is how people carry them between machines."""
    return model.rstrip("/").rpartition("/")[2].lower()
