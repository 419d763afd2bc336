"""What a user can say about the embedded engine. Knows no torch, so that settings cost nothing to make."""

from __future__ import annotations

from pathlib import Path

import msgspec


class TorchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one ``TorchExecutor``; zero and "auto" mean: choose.

    ``model``: checkpoint folder in Hugging Face format. ``dtype``: of weights, activations and KV cache;
    "float32", "bfloat16", "float16" (CUDA only), or "auto": the checkpoint's. ``device``: "cpu", "cuda",
    "cuda:N", or "auto": CUDA where there is one. ``threads``: compute threads; 0: torch's choice.
    ``block_tokens``: tokens in a KV block. ``kv_blocks``: KV blocks; 0: what fits into ``kv_memory_mb``.
    ``kv_memory_mb``: MiB for the KV cache; 0: an eighth of this host's memory, 4 GiB at most, or four fifths
    of what is free on the CUDA device. ``max_model_len``: most tokens of a sequence; 0: the checkpoint's, or
    less where neither length nor memory was given and the memory would not hold one such sequence.
    """

    model: Path
    dtype: str = "auto"
    device: str = "auto"
    threads: int = 0
    block_tokens: int = 16
    kv_blocks: int = 0
    kv_memory_mb: int = 0
    max_model_len: int = 0
