"""The limits of one worker's batch, as the worker's process would find them.

Embedded engines take theirs from the very function that makes them (``serve.engines.opening``). Engines that
are servers of their own choose some themselves; what they choose is said here. It must not know step times.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import ExecutorFacts
from tokenmill.serve.engines.opening import batching_config
from tokenmill.serve.engines.profiled import with_profile
from tokenmill.serve.engines.sglang.launch import BLOCK_TOKENS as SGLANG_BLOCK_TOKENS
from tokenmill.serve.engines.sim.executor import TOKEN_BYTES, SimSettings
from tokenmill.serve.engines.trtllm.launch import DEFAULT_BLOCK_TOKENS as TRTLLM_BLOCK_TOKENS
from tokenmill.serve.engines.vllm.server import FALLBACK_BLOCK_TOKENS as VLLM_BLOCK_TOKENS
from tokenmill.spec.mixes import EMBEDDED_ENGINES
from tokenmill.spec.process import EMBEDDED_BLOCK_TOKENS, WorkerConfig

_BLOCK_TOKENS: Final = {
    "vllm": VLLM_BLOCK_TOKENS,
    "sglang": SGLANG_BLOCK_TOKENS,
    "trtllm": TRTLLM_BLOCK_TOKENS,
}

_LARGE_GIB: Final = 70
"""From so much memory on servers choose a larger budget by themselves."""

_BUDGET, _SMALL_BUDGET = 8192, 2048
"""Tokens a step where nobody says, of servers on large and on small GPUs: what vLLM, SGLang and TensorRT-LLM
take for an H100 and for an A10G, within a factor of 2."""

_LONGEST: Final = 131_072
"""Tokens of a sequence where neither the file nor the model says."""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """KV memory of one worker, and what its engine says of itself; 0: not known. ``tokens``: that it holds.
    ``longest``: tokens of a sequence that the model was made for. ``saturating_tokens``: of a prefill step
    that saturates the device."""

    tokens: int
    bytes_per_token: float
    longest: int = 0
    saturating_tokens: int = 0


def sim_memory(settings: SimSettings, longest: int) -> Memory:
    """Return the sim engine's: four bytes a token."""
    return Memory(
        tokens=settings.kv_blocks * settings.block_tokens,
        bytes_per_token=TOKEN_BYTES,
        longest=longest,
        saturating_tokens=settings.saturating_tokens,
    )


def limits_of(config: WorkerConfig, memory: Memory, gpu: Gpu | None, gpus: int) -> BatchingConfig:
    """Return the limits of a worker that is told ``config``. Raises ConfigError where its memory is not
    known, or not enough."""
    config = with_profile(config)
    block_tokens = config.block_tokens or _BLOCK_TOKENS.get(config.engine, EMBEDDED_BLOCK_TOKENS)
    blocks = _blocks(config, memory, block_tokens, gpus)
    room = blocks * block_tokens
    longest = min(memory.longest or _LONGEST, room)
    if config.engine in EMBEDDED_ENGINES:
        facts = ExecutorFacts(
            model=config.model,
            vocab_size=0,
            max_model_len=longest,
            kv_blocks=blocks,
            block_tokens=block_tokens,
            eos_token_ids=[],
            fingerprint="",
            prefill_budget=memory.saturating_tokens or None,
        )
        return batching_config(config, facts)
    return _server(config, block_tokens, blocks, longest, gpu)


def _server(
    config: WorkerConfig, block_tokens: int, blocks: int, longest: int, gpu: Gpu | None
) -> BatchingConfig:
    """Data parallel ranks are one worker with the room of all of them."""
    ranks = max(1, config.dp)
    small = gpu is not None and gpu.memory_gib < _LARGE_GIB
    budget = config.token_budget or max(_SMALL_BUDGET if small else _BUDGET, config.prefill_budget)
    return BatchingConfig(
        total_blocks=blocks,
        max_model_len=min(config.max_model_len or longest, longest),
        role=config.role,
        block_tokens=block_tokens,
        token_budget=budget * ranks,
        prefill_budget=config.prefill_budget * ranks or None,
        max_sequences=config.max_sequences * ranks,
        max_waiting=config.max_waiting,
        prefix_cache=config.prefix_cache,
    )


def _blocks(config: WorkerConfig, memory: Memory, block_tokens: int, gpus: int) -> int:
    if config.kv_blocks:
        return config.kv_blocks
    if config.kv_memory_mb and config.engine != "sim" and memory.bytes_per_token:
        # A server is told what each of its GPUs takes.
        return int(config.kv_memory_mb * 2**20 * max(1, gpus) / memory.bytes_per_token) // block_tokens
    if memory.tokens < block_tokens:
        raise ConfigError(
            f"stage {config.stage}: its KV memory is not known; write kv_blocks, or kv_memory_mb",
            param="kv_blocks",
        )
    return memory.tokens // block_tokens


def is_early(config: WorkerConfig) -> bool:
    """Whether a prefill worker offers its cache when a prompt is begun; others do when it is done."""
    return config.role is Role.PREFILL and config.engine in (*EMBEDDED_ENGINES, "sglang")
