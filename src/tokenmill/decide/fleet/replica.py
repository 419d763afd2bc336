"""One engine as placement sees it: its step times, its KV memory, and the batches that it runs at a time.

Exists so that data parallel ranks and pipelines are counted in one place. It must not know queues or loads.
"""

from __future__ import annotations

import msgspec

from tokenmill.decide.fleet.workload import Shape
from tokenmill.decide.perf.step_time import StepTimeModel

KV_SHARE = 0.99
"""Of the KV cache that sequences may fill; schedulers keep a watermark free."""


class Replica(msgspec.Struct, frozen=True, kw_only=True):
    """One engine. ``side_by_side``: data parallel ranks, which decode different sequences in one step;
    ``pipelined``: groups of layers, which work on different batches at a time. ``max_sequences``: of one
    rank's batch."""

    times: StepTimeModel
    kv_capacity_tokens: float
    gpus: int = 1
    side_by_side: int = 1
    pipelined: int = 1
    max_sequences: int = 512

    @property
    def lanes(self) -> int:
        """Batches that run at a time."""
        return self.side_by_side * self.pipelined

    @property
    def lane_kv_tokens(self) -> float:
        """KV cache of one of them."""
        return self.kv_capacity_tokens * KV_SHARE / self.lanes

    def step_ms(self, new: float, context: float, sequences: float, decode_context: float) -> float:
        """Return the time of a step in which every lane computes so much."""
        k = self.side_by_side
        if not new:
            return self.times.decode_ms(k * sequences, k * decode_context)
        return self.times.mixed_ms(k * new, k * context, k * sequences, k * decode_context)

    def prompt_ms(self, shape: Shape, chunk: float, sequences: float, decode_context: float) -> float:
        """Return the time of one prompt, in steps of ``chunk`` tokens."""
        context = shape.mean_context
        full, rest = divmod(shape.new_tokens, chunk)
        total_ms = 0.0
        if full:
            total_ms += full * self.step_ms(chunk, chunk * context, sequences, decode_context)
        if rest:
            total_ms += self.step_ms(rest, rest * context, sequences, decode_context)
        return total_ms
