"""Replicas whose step times come from the kernel tables, kept in files between runs.

Exists so that only the first question about a replica waits for the database. It must not know the package
behind ``kernel_tables``.
"""

from __future__ import annotations

import msgspec

from tokenmill.decide.perf.estimates import fit_of
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, ReplicaTimes
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.profiles.kernel_tables import KernelTables, installed, version
from tokenmill.profiles.table_cache import TableCache

EXPECTED_ERROR = 0.1
"""The share by which sums of measured kernels miss whole steps, about what the tables' makers report."""


class DatabaseSource:
    """A ``StepTimeSource`` over the extra ``perf``; without it, it says so."""

    def __init__(self, cache: TableCache) -> None:
        self._cache = cache
        self._tables = KernelTables()
        self._version = version()

    def replica(self, ask: ReplicaAsk) -> ReplicaTimes | NoTimes:
        """See ``StepTimeSource``."""
        if not installed():
            return NoTimes(reason="the step-time database is not installed: pip install 'tokenmill[perf]'")
        key = self._key(ask)
        table = self._cache.get(key)
        if table is None:
            table = self._tables.read(ask, kv_capacity_tokens=0)
            self._cache.put(key, table)
        if isinstance(table, NoTimes):
            return table
        memory = fit_of(ask)
        full = msgspec.structs.replace(table, kv_capacity_tokens=memory.kv_capacity_tokens)
        return ReplicaTimes(
            times=TableStepTime(full), memory=memory, origin="database", expected_error=EXPECTED_ERROR
        )

    def _key(self, ask: ReplicaAsk) -> str:
        shape = msgspec.json.encode(ask.shape).decode()
        parallel = msgspec.structs.astuple(ask.parallel)
        return f"{self._version} {ask.gpu.name} {ask.engine} {parallel} {ask.kv_dtype} {shape}"
