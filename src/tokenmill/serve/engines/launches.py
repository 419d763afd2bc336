"""From a worker's configuration to what launches its engine, where that is a server of its own.

Exists so that those who run factories can show the very commands, and need not know engines. It starts
nothing and reads no file of the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from tokenmill.serve.engines.remote.gpus import visible_gpus
from tokenmill.serve.engines.remote.options import LOOPBACK, Parallelism, ServerOptions
from tokenmill.serve.engines.sglang import launch as sglang
from tokenmill.serve.engines.trtllm import plan as trtllm
from tokenmill.serve.engines.vllm.plan import Ports, VllmOptions, plan_launch, ranks_of
from tokenmill.spec.models import model_name
from tokenmill.spec.process import WorkerConfig

_Options = TypeVar("_Options", bound=ServerOptions)


class EngineLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """A server's command. ``environment``: what is set beside what it inherits; ``ports``: taken from the
    first one on; ``files``: texts by the path at which the command reads them."""

    command: list[str]
    environment: dict[str, str]
    ports: int
    files: dict[str, str] = {}


def engine_launch(
    config: WorkerConfig, first_port: int, environment: Mapping[str, str]
) -> EngineLaunch | None:
    """Return what launches the engine of a worker; None where it has none of its own.

    A worker that launches it chooses free ports; here they are counted from ``first_port``, or from the
    address of the server that it attaches to. ``environment``: the worker's. Raises ConfigError for settings
    that cannot be.
    """
    if config.engine == "trtllm":
        return _trtllm_launch(config, first_port, environment)
    if config.engine == "sglang":
        return _sglang_launch(config, first_port, environment)
    if config.engine == "vllm":
        return _vllm_launch(config, first_port, environment)
    return None


def _vllm_launch(config: WorkerConfig, first_port: int, environment: Mapping[str, str]) -> EngineLaunch:
    options = vllm_options(config, config.model, environment if not config.attach else {})
    width = ranks_of(options.parallel)
    if not config.attach:
        ports = Ports(*(first_port + width * channel for channel in range(4)))
        plan = plan_launch(options, ports)
        return EngineLaunch(command=plan.command, environment=plan.environment, ports=4 * width)
    host, port = _address(config.attach)
    reached = host if options.transfer_host == LOOPBACK else options.transfer_host
    options = msgspec.structs.replace(options, transfer_host=reached, run_dir="")
    ports = Ports(port, *(port + 1 + width * channel for channel in range(3)))
    plan = plan_launch(options, ports, host=host, here=False)
    return EngineLaunch(command=plan.command, environment=plan.environment, ports=0)


def _sglang_launch(config: WorkerConfig, first_port: int, environment: Mapping[str, str]) -> EngineLaunch:
    options = sglang_options(config, config.model, environment if not config.attach else {})
    width = max(1, options.parallel.dp)
    if not config.attach:
        ports = sglang.Ports(*(first_port + width * channel for channel in range(4)))
        plan = sglang.plan_launch(options, ports)
        return EngineLaunch(command=plan.command, environment=plan.environment, ports=4 * width)
    host, port = _address(config.attach)
    options = msgspec.structs.replace(options, transfer_host=host, run_dir="")
    ports = sglang.Ports(port, *(port + 1 + width * channel for channel in range(3)))
    plan = sglang.plan_launch(options, ports, here=False)
    return EngineLaunch(command=plan.command, environment=plan.environment, ports=0)


def _trtllm_launch(config: WorkerConfig, first_port: int, environment: Mapping[str, str]) -> EngineLaunch:
    options = trtllm_options(config, config.model, environment if not config.attach else {})
    if config.attach:
        host, port = _address(config.attach)
        plan = trtllm.plan_launch(options, port, host=host, here=False)
    else:
        plan = trtllm.plan_launch(options, first_port)
    return EngineLaunch(
        command=plan.command,
        environment=plan.environment,
        ports=0 if config.attach else 1,
        files={plan.options_file: plan.options},
    )


def _address(attach: str) -> tuple[str, int]:
    address = urlsplit(attach)
    return address.hostname or LOOPBACK, address.port or 80


def trtllm_options(config: WorkerConfig, model: str, environment: Mapping[str, str]) -> trtllm.TrtllmOptions:
    """Return what the TensorRT-LLM engine is told. ``model``: the folder or hub id that the server loads."""
    return _options(trtllm.TrtllmOptions, config, model, environment)


def sglang_options(config: WorkerConfig, model: str, environment: Mapping[str, str]) -> sglang.SglangOptions:
    """Return what the SGLang engine is told. ``model``: the folder or hub id that the server loads."""
    return _options(sglang.SglangOptions, config, model, environment, transfer_host=config.transfer_host)


def vllm_options(config: WorkerConfig, model: str, environment: Mapping[str, str]) -> VllmOptions:
    """Return what the vLLM engine is told. ``model``: the folder or hub id that the server loads."""
    return _options(
        VllmOptions,
        config,
        model,
        environment,
        kv_connector=config.kv_connector,
        transports=tuple(config.transports),
        lease_s=config.lease_s,
        transfer_host=config.transfer_host,
    )


def _options(
    kind: type[_Options], config: WorkerConfig, model: str, environment: Mapping[str, str], **own: Any
) -> _Options:
    """Fill in what all servers are told; ``own``: the fields of this kind alone."""
    unnamed = config.attach and not config.model and not config.model_name
    return kind(
        model=model,
        model_name="" if unnamed else model_name(config.model_name, config.model),
        role=config.role,
        attach=config.attach,
        api_key=config.attach_key,
        engine_python=config.engine_python,
        engine_command=config.engine_command,
        engine_args=config.engine_args,
        engine_env={**visible_gpus(config.gpus, environment), **config.engine_env},
        parallel=Parallelism(tp=config.tp, pp=config.pp, dp=config.dp, ep=config.ep),
        run_dir=config.run_dir,
        block_tokens=config.block_tokens,
        kv_blocks=config.kv_blocks,
        kv_memory_mb=config.kv_memory_mb,
        max_model_len=config.max_model_len,
        max_sequences=config.max_sequences,
        max_waiting=config.max_waiting,
        token_budget=config.token_budget,
        dtype=config.dtype,
        prefix_cache=config.prefix_cache,
        **own,
    )
