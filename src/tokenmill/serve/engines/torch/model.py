"""What the executor needs of a model, and which implementation a checkpoint gets."""

from __future__ import annotations

from typing import Protocol

import msgspec
import torch

from tokenmill.serve.engines.torch.attention import PagedCache, StepBatch
from tokenmill.serve.engines.torch.checkpoint import Checkpoint


class ModelShape(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of a loaded model. ``max_positions``: the longest sequence it was made for, in tokens."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int


class PagedModel(Protocol):
    """A decoder whose attention reads and writes a ``PagedCache``."""

    shape: ModelShape

    def compute(self, batch: StepBatch, cache: PagedCache, rows: torch.Tensor | None) -> torch.Tensor:
        """Write the step's KV; return float32 logits [len(rows), vocab] of ``rows`` (int64), all if None."""
        ...


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> PagedModel:
    """Load with our own forward pass if it covers the checkpoint, else with its ``transformers`` class.

    Raises ConfigError. Imported late: ``transformers`` takes seconds that the former need not pay.
    """
    from tokenmill.serve.engines.torch.llama import LlamaModel, covers  # noqa: PLC0415

    if covers(checkpoint):
        return LlamaModel(checkpoint, dtype, device)
    from tokenmill.serve.engines.torch.generic import GenericModel  # noqa: PLC0415

    return GenericModel(checkpoint, dtype, device)
