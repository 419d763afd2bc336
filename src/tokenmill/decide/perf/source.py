"""The seam behind which step times of a model on a GPU are found: database, roofline or measured profile.

Exists so that placement and simulator ask for a replica and need not know where the answer is from. It must
not know how tables are read.
"""

from __future__ import annotations

from typing import Literal, Protocol

import msgspec

from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.memory import MemoryFit
from tokenmill.decide.perf.model_shape import ModelShape
from tokenmill.decide.perf.step_time import StepTimeModel
from tokenmill.spec.stage import Parallel

Origin = Literal["database", "roofline", "measured"]


class ReplicaAsk(msgspec.Struct, frozen=True, kw_only=True):
    """One engine: a model on GPUs of one kind. ``within``: between its GPUs (None: as in the catalogue's
    server). ``engine``: whose kernels (vllm, sglang, trtllm). ``kv_dtype``: of the KV cache ("": as the
    checkpoint says, else bf16; fp8). ``step_tokens``: most tokens of one step, for activations."""

    shape: ModelShape
    gpu: Gpu
    parallel: Parallel = Parallel()
    engine: str = "vllm"
    kv_dtype: str = ""
    step_tokens: int = 8192
    utilization: float = 0.9
    within: Link | None = None


class ReplicaTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The answer: step times (units and meaning as in ``StepTimeModel``), how memory is filled, and where it
    is from. ``expected_error``: the share by which times may be off, as far as is known. Times are there also
    where ``memory.fits`` is false."""

    times: StepTimeModel
    memory: MemoryFit
    origin: Origin
    expected_error: float
    note: str = ""


class NoTimes(msgspec.Struct, frozen=True, kw_only=True):
    """This source cannot answer, and why, in a sentence for people."""

    reason: str


class StepTimeSource(Protocol):
    """Finds step times. Asking again for the same replica is cheap (answers are kept)."""

    def replica(self, ask: ReplicaAsk) -> ReplicaTimes | NoTimes:
        """Answer for one replica."""
        ...
