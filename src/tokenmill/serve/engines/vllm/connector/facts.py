"""What vLLM tells of its cache, in our words. Runs in vLLM's environment.

Read against vLLM 0.32.0. Exists so that only this module changes when vLLM's description of its cache does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

import msgspec
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheSpec,
    MLAAttentionSpec,
    SlidingWindowSpec,
    UniformTypeKVCacheSpecs,
)

import vllm
from tokenmill.errors import ConfigError
from tokenmill.serve.engines.vllm.connector.cache import CacheGroup, Region

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

_KINDS = (FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec)


def check_supported(config: VllmConfig, cache: KVCacheConfig) -> None:
    """Raise ConfigError for what this connector cannot hand over."""
    parallel = config.parallel_config
    refused = {
        "context parallelism": parallel.decode_context_parallel_size * parallel.prefill_context_parallel_size
        > 1,
        "recurrent layers": cache.has_mamba_layers,
        "caches outside the device": bool(cache.host_group_ids),
        "layers whose cache is made anew after a load": len(cache.transfer_group_ids)
        != len(cache.kv_cache_groups),
        "draft models that look ahead": config.num_prefill_lookahead_tokens > 1,
    }
    for what, there in refused.items():
        if there:
            raise ConfigError(f"this connector does not hand over {what}: use kv_connector: nixl")


def groups_of(cache: KVCacheConfig) -> list[CacheGroup]:
    """Return the groups of layers that share a block table. Raises ConfigError for an unknown kind."""
    return [
        CacheGroup(group.kv_cache_spec.block_size, _window(group.kv_cache_spec))
        for group in cache.kv_cache_groups
    ]


def regions_of(cache: KVCacheConfig) -> list[Region]:
    """Return where all layers lie."""
    return [
        Region(tensor.size, tensor.offset + index * tensor.layer_stride, tensor.block_stride)
        for tensor in cache.kv_cache_tensors
        for index in range(len(tensor.layers))
    ]


def shapes_of(caches: Mapping[str, torch.Tensor]) -> str:
    """Return how a block looks inside, layer by layer, as a short digest."""
    lines = [
        f"{name} {tuple(each.shape[1:])} {each.stride()} {each.dtype}"
        for name, each in sorted(caches.items())
    ]
    return _digest(lines)


def fingerprint_of(config: VllmConfig, groups: Sequence[CacheGroup], ranks: Sequence[tuple[str, int]]) -> str:
    """Return what is equal on two engines exactly if they can read each other's pages. ``ranks``: each
    worker's ``shapes_of`` and bytes a page.

    Of the model's place only the last part counts: hosts keep it in different folders.
    """
    model = config.model_config
    lines = [
        f"vllm {vllm.__version__}",
        f"model {PurePath(model.model).name} {model.dtype} {config.cache_config.cache_dtype}",
        f"architectures {model.architectures}",
        *(f"group {group.block_tokens} {group.window}" for group in groups),
        *(f"rank {shapes} {page}" for shapes, page in ranks),
    ]
    return _digest(lines)


def _window(spec: KVCacheSpec) -> int:
    if isinstance(spec, UniformTypeKVCacheSpecs):
        windows = {_window(each) for each in spec.kv_cache_specs.values()}
        if len(windows) == 1:
            return windows.pop()
    elif type(spec) in _KINDS:
        return spec.sliding_window if isinstance(spec, SlidingWindowSpec) else 0
    raise ConfigError(
        f"this connector does not know which blocks {type(spec).__name__} keeps: use kv_connector: nixl"
    )


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256(msgspec.json.encode(lines)).hexdigest()[:16]
