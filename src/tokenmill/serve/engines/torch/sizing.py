"""How much KV cache there is and how long a sequence may be. Arithmetic only; allocates nothing."""

from __future__ import annotations

import os

import torch

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.torch.settings import TorchSettings
from tokenmill.serve.transfer.base import KvLayout

_MIB = 2**20
_HOST_SHARE = 1 / 8
_HOST_MOST_MIB = 4096
_DEVICE_SHARE = 0.8
_USEFUL_SEQUENCES = 64
"""More blocks than so many longest sequences fill are not asked for unless the user says."""


def size_cache(
    settings: TorchSettings, layout: KvLayout, max_positions: int, device: torch.device
) -> tuple[int, int]:
    """Return (blocks, most tokens of a sequence). Raises ConfigError where one sequence would not fit.

    ``max_positions``: what the model was made for, in tokens.
    """
    if settings.max_model_len > max_positions:
        raise ConfigError(
            f"max_model_len: {settings.max_model_len} is above the model's {max_positions} tokens",
            param="max_model_len",
        )
    longest = settings.max_model_len or max_positions
    useful = -(-longest // layout.block_tokens)
    bytes_a_block = layout.planes * layout.block_bytes
    if settings.kv_blocks:
        blocks = settings.kv_blocks
    elif settings.kv_memory_mb:
        blocks = settings.kv_memory_mb * _MIB // bytes_a_block
    else:
        blocks = min(_default_bytes(device) // bytes_a_block, useful * _USEFUL_SEQUENCES)
        if blocks >= 1 and not settings.max_model_len:
            longest = min(longest, blocks * layout.block_tokens)
    room = blocks * layout.block_tokens
    if room < longest:
        needed_mib = -(-useful * bytes_a_block // _MIB)
        raise ConfigError(
            f"kv_memory_mb: {blocks} KV blocks hold {room} tokens, but one sequence of max_model_len "
            f"{longest} needs {useful} blocks: give --kv-memory-mb {needed_mib} or --max-model-len {room}",
            param="kv_memory_mb",
        )
    return blocks, longest


def _default_bytes(device: torch.device) -> int:
    """Bytes for the cache where the user does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _DEVICE_SHARE)
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(int(host * _HOST_SHARE), _HOST_MOST_MIB * _MIB)
