"""From a worker's configuration to its engine. The only place that knows the engines by name."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
from dataclasses import replace
from pathlib import Path

import msgspec

from tokenmill.clock import SystemClock
from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import Engine, Executor, ExecutorFacts
from tokenmill.serve.engines.profiled import DEFAULT_PREFILL_BUDGET, profile_of, with_profile
from tokenmill.serve.engines.remote.keys import read_key
from tokenmill.serve.engines.sim.executor import DEFAULT_KV_BLOCKS, SimExecutor, SimSettings
from tokenmill.serve.engines.stepped import SteppedEngine
from tokenmill.serve.transfer.base import KvTransport
from tokenmill.spec.models import resolve_model
from tokenmill.spec.process import EMBEDDED_BLOCK_TOKENS, WorkerConfig

ENGINES = ("torch", "sim", "vllm", "sglang", "trtllm", "openai")


DEFAULT_TOKEN_BUDGET = 2048
"""Tokens a step where neither the user nor the engine says: bounds a step's time on a large device."""


def open_engine(config: WorkerConfig, transport: KvTransport | None, clock: SystemClock) -> Engine:
    """Make the engine that ``config`` names; it loads in ``start``. Raises ConfigError."""
    config = with_profile(replace(config, attach_key=read_key(config.attach_key, os.environ)))
    if config.engine == "vllm":
        return _vllm_engine(config, clock)
    if config.engine == "sglang":
        return _sglang_engine(config, clock)
    if config.engine == "trtllm":
        return _trtllm_engine(config, clock)
    if config.engine == "openai":
        return _openai_engine(config, clock)
    if config.attach:
        raise ConfigError(f"attach: the engine {config.engine} runs in the worker", param="attach")
    executor = _executor(config, clock)
    return SteppedEngine(
        name=config.engine,
        executor=executor,
        make_batching=lambda facts: batching_config(config, facts),
        transport=transport,
        clock=clock,
        lease_s=config.lease_s,
    )


def batching_config(config: WorkerConfig, facts: ExecutorFacts) -> BatchingConfig:
    """Choose the batch's limits for the role, where the user does not say.

    A prefill worker takes no more than saturates the device, so that the first prompt of a batch does not
    wait for the last. A worker that also decodes bounds its prefill chunks, so that decodes do not wait long.
    """
    saturating = facts.prefill_budget or DEFAULT_PREFILL_BUDGET
    if config.prefill_budget:
        prefill_budget = config.prefill_budget
    elif config.role is Role.PREFILL:
        prefill_budget = saturating
    else:
        prefill_budget = min(saturating, DEFAULT_PREFILL_BUDGET)
    token_budget = config.token_budget or max(DEFAULT_TOKEN_BUDGET, prefill_budget)
    max_model_len = min(config.max_model_len or facts.max_model_len, facts.max_model_len)
    return BatchingConfig(
        total_blocks=facts.kv_blocks,
        max_model_len=max_model_len,
        role=config.role,
        block_tokens=facts.block_tokens,
        token_budget=token_budget,
        prefill_budget=prefill_budget,
        max_sequences=config.max_sequences,
        max_waiting=config.max_waiting,
        prefix_cache=config.prefix_cache,
    )


def _executor(config: WorkerConfig, clock: SystemClock) -> Executor:
    if config.engine == "sim":
        return SimExecutor(sim_settings(config, resolve_model(config.model)), clock)
    if config.engine == "torch":
        for package in ("torch", "transformers"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"engine torch needs the package {package}: pip install 'tokenmill[torch]', "
                    "or choose --engine sim",
                    param="engine",
                )
        return _torch_executor(config, resolve_model(config.model))
    raise ConfigError(f"engine: {config.engine!r} is not one of {', '.join(ENGINES)}", param="engine")


def _vllm_engine(config: WorkerConfig, clock: SystemClock) -> Engine:
    if importlib.util.find_spec("zmq") is None:
        raise ConfigError(
            "engine vllm needs the package pyzmq: pip install 'tokenmill[vllm]'", param="engine"
        )
    from tokenmill.serve.engines.launches import vllm_options  # noqa: PLC0415 - needs the extra
    from tokenmill.serve.engines.vllm.engine import VllmEngine  # noqa: PLC0415

    model = config.model if config.attach else str(resolve_model(config.model))
    environment = {} if config.attach else os.environ
    return VllmEngine(vllm_options(config, model, environment), clock)


def _check_sglang(config: WorkerConfig) -> None:
    if importlib.util.find_spec("zmq") is None:
        raise ConfigError(
            "engine sglang needs the package pyzmq: pip install 'tokenmill[sglang]'", param="engine"
        )
    if config.kv_memory_mb:
        why = "SGLang counts its KV cache in tokens or by a share of the memory"
        fix = "write kv_blocks, or engine_args: {mem_fraction_static: 0.8}"
        raise ConfigError(f"kv_memory_mb: {why}; {fix}", param="kv_memory_mb")


def _sglang_engine(config: WorkerConfig, clock: SystemClock) -> Engine:
    _check_sglang(config)
    from tokenmill.serve.engines.launches import sglang_options  # noqa: PLC0415 - needs the extra
    from tokenmill.serve.engines.sglang.engine import SglangEngine  # noqa: PLC0415

    model = config.model if config.attach else str(resolve_model(config.model))
    environment = {} if config.attach else os.environ
    return SglangEngine(sglang_options(config, model, environment), clock)


def _trtllm_engine(config: WorkerConfig, clock: SystemClock) -> Engine:
    from tokenmill.serve.engines.launches import trtllm_options  # noqa: PLC0415 - no other engine pays for it
    from tokenmill.serve.engines.trtllm.engine import TrtllmEngine  # noqa: PLC0415

    folder: Path | None = None
    if not config.attach:
        folder = resolve_model(config.model)
    elif config.model:
        with contextlib.suppress(ConfigError):  # it need not be on this machine
            folder = resolve_model(config.model)
    environment = {} if config.attach else os.environ
    options = trtllm_options(config, config.model if config.attach else str(folder), environment)
    return TrtllmEngine(msgspec.structs.replace(options, checkpoint=folder), clock)


def _openai_engine(config: WorkerConfig, clock: SystemClock) -> Engine:
    from tokenmill.serve.engines.openai.engine import (  # noqa: PLC0415 - no other engine pays for it
        OpenAiArguments,
        OpenAiEngine,
        OpenAiOptions,
    )

    if not config.attach:
        raise ConfigError("attach: engine openai needs the address of a server", param="attach")
    if config.role is not Role.BOTH:
        raise ConfigError("role: engine openai hands no KV cache over; use both", param="role")
    try:
        arguments = msgspec.convert(config.engine_args, OpenAiArguments, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(OpenAiArguments.__struct_fields__)
        raise ConfigError(
            f"engine_args: {error}; engine openai takes {known}", param="engine_args"
        ) from error
    if not all(0 < value < math.inf for value in msgspec.structs.astuple(arguments)):
        raise ConfigError("engine_args: the numbers of engine openai must be positive", param="engine_args")
    return OpenAiEngine(
        OpenAiOptions(
            attach=config.attach,
            api_key=config.attach_key,
            model=config.model,
            model_name=config.model_name,
            max_model_len=config.max_model_len,
            max_sequences=config.max_sequences,
            max_waiting=config.max_waiting,
            arguments=arguments,
        ),
        clock,
    )


def _torch_executor(config: WorkerConfig, model: Path) -> Executor:
    from tokenmill.serve.engines.torch.executor import TorchExecutor  # noqa: PLC0415 - needs the extra
    from tokenmill.serve.engines.torch.settings import TorchSettings  # noqa: PLC0415

    if config.engine_args:
        unknown = ", ".join(sorted(config.engine_args))
        raise ConfigError(f"engine_args: the torch engine takes none, but got {unknown}", param="engine_args")
    return TorchExecutor(
        TorchSettings(
            model=model,
            dtype=config.dtype,
            device=config.device,
            threads=config.threads,
            block_tokens=config.block_tokens or EMBEDDED_BLOCK_TOKENS,
            kv_blocks=config.kv_blocks,
            kv_memory_mb=config.kv_memory_mb,
            max_model_len=config.max_model_len,
        )
    )


class _SimArguments(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The sim engine's ``engine_args``, with the fields of ``LinearStepTime``."""

    speedup: float = 1.0
    jitter: float = 0.0
    seed: int = 0
    fixed_ms: float = LinearStepTime().fixed_ms
    prefill_token_ms: float = LinearStepTime().prefill_token_ms
    prefill_context_ms: float = LinearStepTime().prefill_context_ms
    decode_sequence_ms: float = LinearStepTime().decode_sequence_ms
    decode_context_ms: float = LinearStepTime().decode_context_ms


def sim_settings(config: WorkerConfig, model: Path) -> SimSettings:
    """Return what the sim engine is told; ``model`` is its folder. Raises ConfigError."""
    try:
        given = msgspec.convert(config.engine_args, _SimArguments, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(_SimArguments.__struct_fields__)
        raise ConfigError(
            f"engine_args: {error}; the sim engine takes {known}", param="engine_args"
        ) from error
    if not all(math.isfinite(value) for value in msgspec.structs.astuple(given)):
        raise ConfigError("engine_args: the sim engine's numbers must be finite", param="engine_args")
    step_time = LinearStepTime(
        **{name: value for name, value in msgspec.structs.asdict(given).items() if name.endswith("_ms")}
    )
    if given.speedup < 0 or given.jitter < 0 or step_time.fixed_ms < 0 or step_time.prefill_token_ms <= 0:
        raise ConfigError("engine_args: the sim engine's times must be positive", param="engine_args")
    profile = profile_of(config)
    return SimSettings(
        model=model,
        block_tokens=config.block_tokens or EMBEDDED_BLOCK_TOKENS,
        kv_blocks=config.kv_blocks or _blocks_in(config) or DEFAULT_KV_BLOCKS,
        max_model_len=config.max_model_len,
        speedup=given.speedup,
        jitter=given.jitter,
        seed=given.seed + config.replica,
        step_time=step_time if profile is None else TableStepTime(profile.table),
        saturating_tokens=step_time.saturating_tokens() if profile is None else profile.knee.tokens,
    )


def _blocks_in(config: WorkerConfig) -> int:
    """Blocks in ``kv_memory_mb``, at the sim engine's four bytes a token."""
    return config.kv_memory_mb * 2**20 // (4 * (config.block_tokens or EMBEDDED_BLOCK_TOKENS))
