"""Replicas whose step times come from the roofline, and asking several sources in turn.

Exists so that whoever asks for a replica gets the best answer there is. It must not read files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from tokenmill.decide.perf.efficiency import Efficiency
from tokenmill.decide.perf.memory import MemoryFit, memory_fit
from tokenmill.decide.perf.model_shape import BYTES_OF
from tokenmill.decide.perf.roofline import Roofline
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, ReplicaTimes, StepTimeSource
from tokenmill.decide.perf.table import TableStepTime

MAX_KEPT: Final = 4096
"""Answers that a source keeps; some hundred numbers each. A fleet's candidates are some hundred."""


def fit_of(ask: ReplicaAsk) -> MemoryFit:
    """Return how the asked replica's memory is filled."""
    return memory_fit(
        ask.shape,
        ask.gpu,
        ask.parallel,
        kv_dtype_bytes=BYTES_OF[ask.kv_dtype] if ask.kv_dtype else 0.0,
        step_tokens=ask.step_tokens,
        utilization=ask.utilization,
    )


class RooflineSource:
    """Answers for any model and GPU. ``efficiencies``: by GPU name; the usual ones under "" for others with
    fast links between GPUs, and under "pcie" for those without."""

    def __init__(self, efficiencies: Mapping[str, Efficiency]) -> None:
        self._efficiencies = efficiencies

    def replica(self, ask: ReplicaAsk) -> ReplicaTimes | NoTimes:
        """See ``StepTimeSource``."""
        known = ask.gpu.name in self._efficiencies
        alike = "" if ask.gpu.peer_gb_per_s else "pcie"
        efficiency = self._efficiencies.get(ask.gpu.name) or self._efficiencies.get(alike) or Efficiency()
        memory = fit_of(ask)
        roofline = Roofline(
            ask.shape, ask.gpu, ask.parallel, efficiency, kv_dtype=ask.kv_dtype, link=ask.within
        )
        return ReplicaTimes(
            times=TableStepTime(roofline.table(kv_capacity_tokens=memory.kv_capacity_tokens)),
            memory=memory,
            origin="roofline",
            expected_error=efficiency.fit_error,
            note="" if known else f"efficiencies of other GPUs, since none were fitted for {ask.gpu.name}",
        )


class FirstThatKnows:
    """Asks sources in turn and keeps their answers, so that asking again costs a lookup."""

    def __init__(self, sources: Sequence[StepTimeSource]) -> None:
        self._sources = tuple(sources)
        self._kept: dict[object, ReplicaTimes | NoTimes] = {}

    def replica(self, ask: ReplicaAsk) -> ReplicaTimes | NoTimes:
        """See ``StepTimeSource``: the first answer; where nobody knows, everybody's reason."""
        key = _key(ask)
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        answer = self._ask(ask)
        if len(self._kept) >= MAX_KEPT:
            self._kept.pop(next(iter(self._kept)))
        self._kept[key] = answer
        return answer

    def _ask(self, ask: ReplicaAsk) -> ReplicaTimes | NoTimes:
        reasons = []
        for source in self._sources:
            answer = source.replica(ask)
            if isinstance(answer, ReplicaTimes):
                return answer
            reasons.append(answer.reason)
        return NoTimes(reason="; ".join(reasons) or "no source of step times")


def _key(ask: ReplicaAsk) -> object:
    """What tells one replica from another. GPUs of one name may have other figures in another fleet."""
    gpu, parallel = ask.gpu, ask.parallel
    return (
        ask.shape,
        gpu.name,
        gpu.memory_gib,
        gpu.memory_gb_per_s,
        gpu.node_gb_per_s,
        tuple(sorted(gpu.tflops.items())),
        (parallel.tp, parallel.pp, parallel.dp, parallel.ep),
        (ask.engine, ask.kv_dtype, ask.step_tokens, ask.utilization),
        ask.within,
    )
