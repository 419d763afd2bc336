"""Whether a model fits on a replica's GPUs, and how many tokens of KV cache the rest holds.

Exists so that placement, step-time models and reports agree about memory. It must not know step times.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenmill.decide.fleet.catalogue import GIB, Gpu
from tokenmill.decide.perf.model_shape import ModelShape
from tokenmill.spec.stage import Parallel

UTILIZATION: Final = 0.9
"""The share of a GPU's memory that engines take by default."""

CONTEXT_GIB: Final = 2.5
"""What one GPU's engine holds beside weights, activations and KV: driver context, libraries, communication
buffers, captured graphs."""

_ACTIVATION_BYTES: Final = 2
"""Activations are bfloat16 whatever the weights are."""


class MemoryFit(msgspec.Struct, frozen=True, kw_only=True):
    """How one GPU of a replica is filled, in bytes. ``kv_capacity_tokens``: of the whole replica.

    ``kv_bytes_per_token``: over the replica's GPUs, copies left out (of a token's cache that several GPUs
    hold alike one counts).
    """

    available_bytes: float
    weights_bytes: float
    activation_bytes: float
    context_bytes: float
    kv_bytes: float
    kv_bytes_per_token: float
    kv_capacity_tokens: int

    @property
    def fits(self) -> bool:
        """Whether there is room for weights and at least some KV cache."""
        return self.kv_capacity_tokens > 0

    def lacking_gib(self) -> float:
        """What a GPU lacks for weights and activations, GiB; 0 if nothing."""
        return max(0.0, -self.kv_bytes) / GIB


def gpus_of(parallel: Parallel) -> int:
    """GPUs of one replica. Expert parallel ranks are the tensor and data parallel ones over again."""
    return parallel.tp * parallel.pp * parallel.dp


def memory_fit(
    shape: ModelShape,
    gpu: Gpu,
    parallel: Parallel,
    *,
    kv_dtype_bytes: float = 0.0,
    step_tokens: int = 8192,
    utilization: float = UTILIZATION,
) -> MemoryFit:
    """Fill the GPUs of a replica with a model.

    ``kv_dtype_bytes``: of one number in the KV cache (0: as the model's activations). ``step_tokens``: most
    tokens that one step computes.
    """
    available = gpu.memory_bytes * utilization
    weights = shape.weight_bytes_per_gpu(parallel)
    activation = shape.activations_per_token(parallel.tp) * step_tokens * _ACTIVATION_BYTES
    context = CONTEXT_GIB * GIB
    kv_room = available - weights - activation - context
    per_token_per_gpu = shape.kv_bytes_per_token_per_gpu(parallel, kv_dtype_bytes)
    # Data parallel ranks hold different sequences; tensor and pipeline ranks hold parts of the same.
    tokens = int(max(0.0, kv_room) / per_token_per_gpu) * parallel.dp
    return MemoryFit(
        available_bytes=available,
        weights_bytes=weights,
        activation_bytes=activation,
        context_bytes=context,
        kv_bytes=kv_room,
        kv_bytes_per_token=shape.kv_bytes_per_token(kv_dtype_bytes),
        kv_capacity_tokens=tokens,
    )
