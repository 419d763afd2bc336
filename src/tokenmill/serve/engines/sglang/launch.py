"""The command line of an SGLang server for a worker's role, and what else launching it means.

Plain functions, so that what is shown is what a worker runs; they start nothing. Read against SGLang 0.5.23
(``srt/arg_groups/fields``). What the role needs is set here; what the user says wins, unless the worker could
not do its work with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.kv_events.rank_events import EventSource
from tokenmill.serve.engines.remote.options import LOOPBACK, ServerOptions
from tokenmill.serve.engines.remote.program import program

_MODULE = "sglang.launch_server"

BLOCK_TOKENS = 16
"""Tokens in a KV block where the user names no size. SGLang's own 1 would make an event for every token."""

MODES = {Role.PREFILL: "prefill", Role.DECODE: "decode", Role.BOTH: "null"}
"""``--disaggregation-mode`` by role."""

OURS = {
    "model_path": "write model: {path: ...}",
    "host": "write transfer_host, where other workers' engines reach this one",
    "port": "the worker chooses it, so that replicas do not collide; use attach for a server of your own",
    "served_model_name": "it follows model.name",
    "tensor_parallel_size": "write parallel: {tp: N}",
    "pipeline_parallel_size": "write parallel: {pp: N}",
    "data_parallel_size": "write parallel: {dp: N}",
    "expert_parallel_size": "write parallel: {ep: N}",
    "page_size": "write block_tokens: N",
    "disaggregation_mode": "it follows the stage's role",
    "disaggregation_bootstrap_port": "the worker chooses it, so that replicas do not collide",
    "kv_events_config": "the worker reads the events; prefix_cache: false turns them off",
    "enable_metrics": "the worker reads the metrics",
    "is_embedding": "a worker makes tokens",
}
"""Options that ``engine_args`` may not set, and why."""

_ALIASES = {
    "model": "model_path",
    "tp": "tensor_parallel_size",
    "tp_size": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "dp_size": "data_parallel_size",
    "ep": "expert_parallel_size",
    "ep_size": "expert_parallel_size",
}


class SglangOptions(ServerOptions, frozen=True, kw_only=True):
    """What a worker is told of its engine. ``transfer_host``: where the workers that take the KV cache reach
    this one's."""

    transfer_host: str = LOOPBACK


class Ports(msgspec.Struct, frozen=True):
    """Where a server listens; behind ``events`` and ``replay`` there are as many free ones as ``dp`` says."""

    serve: int
    bootstrap: int
    events: int
    replay: int


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A server to start. ``environment``: beside the one that it inherits. ``sources``: of its KV events."""

    command: list[str]
    environment: dict[str, str]
    url: str
    sources: tuple[EventSource, ...]


def plan_launch(options: SglangOptions, ports: Ports, *, here: bool = True) -> LaunchPlan:
    """Return what starts the server. ``here``: on this machine. Raises ConfigError for arguments that cannot
    be."""
    host = options.transfer_host
    sources = _sources(options, ports)
    words = program(options, _MODULE, here=here, bare=("python3", "-m", _MODULE))
    return LaunchPlan(
        command=[*words, *serve_arguments(options, ports)],
        environment={"SGLANG_RETURN_ORIGINAL_LOGPROB": "1", **options.engine_env},
        url=f"http://[{host}]:{ports.serve}" if ":" in host else f"http://{host}:{ports.serve}",
        sources=sources,
    )


def serve_arguments(options: SglangOptions, ports: Ports) -> list[str]:
    """Return the server's options. Raises ConfigError for arguments that cannot be."""
    given = {name.replace("-", "_").lstrip("_"): value for name, value in options.engine_args.items()}
    _refuse(given, options.role)
    if options.kv_memory_mb:
        why = "kv_memory_mb: SGLang is told tokens, not bytes; write kv_blocks"
        raise ConfigError(why, param="kv_memory_mb")
    words: dict[str, str | None] = {
        "model_path": options.model,
        "served_model_name": options.model_name,
        "host": options.transfer_host,
        "port": str(ports.serve),
        "page_size": str(options.block_tokens or BLOCK_TOKENS),
        "enable_metrics": None,
        "incremental_streaming_output": None,
    }
    words |= {name: str(number) for name, number in _numbers(options).items() if number}
    if options.dtype != "auto":
        words["dtype"] = options.dtype
    if options.role is not Role.BOTH:
        words["disaggregation_mode"] = MODES[options.role]
    if options.role is Role.PREFILL:
        words["disaggregation_bootstrap_port"] = str(ports.bootstrap)
    if options.prefix_cache:
        words["kv_events_config"] = _events_config(options, ports)
    else:
        words["disable_radix_cache"] = None
    for name, value in given.items():
        if value.lower() == "false":
            words.pop(name, None)
        else:
            words[name] = None if value.lower() in ("true", "") else value
    flat: list[str] = []
    for name, text in words.items():
        flat.append(f"--{name.replace('_', '-')}")
        if text is not None:
            flat.append(text)
    return flat


def _numbers(options: SglangOptions) -> dict[str, int]:
    parallel = options.parallel
    return {
        "tensor_parallel_size": parallel.tp if parallel.tp > 1 else 0,
        "pipeline_parallel_size": parallel.pp if parallel.pp > 1 else 0,
        "data_parallel_size": parallel.dp if parallel.dp > 1 else 0,
        "expert_parallel_size": parallel.ep if parallel.ep > 1 else 0,
        "max_total_tokens": options.kv_blocks * (options.block_tokens or BLOCK_TOKENS),
        "context_length": options.max_model_len,
        "max_running_requests": options.max_sequences,
        "chunked_prefill_size": options.token_budget,
    }


def _refuse(given: Mapping[str, str], role: Role) -> None:
    for name in given:
        own = _ALIASES.get(name, name)
        if own in OURS:
            raise ConfigError(f"engine_args: {name} cannot be set: {OURS[own]}", param="engine_args")
    if given.get("disaggregation_transfer_backend") == "fake":
        why = "disaggregation_transfer_backend cannot be fake: it moves no KV"
        raise ConfigError(f"engine_args: {why}", param="engine_args")
    if role is Role.BOTH:
        for name in given:
            if name.startswith("disaggregation_"):
                why = f"{name} is of use to role: prefill or decode only"
                raise ConfigError(f"engine_args: {why}", param="engine_args")


def _endpoint(options: SglangOptions, name: str, port: int) -> str:
    """A Unix socket in the worker's own folder where one will do: nobody else can read or speak there."""
    if options.parallel.dp == 1 and options.run_dir:
        return f"ipc://{Path(options.run_dir) / f'sglang-{name}-{port}.sock'}"
    return f"tcp://*:{port}"


def _events_config(options: SglangOptions, ports: Ports) -> str:
    config = {
        "publisher": "zmq",
        "endpoint": _endpoint(options, "events", ports.events),
        "replay_endpoint": _endpoint(options, "replay", ports.replay),
    }
    return msgspec.json.encode(config).decode()


def _sources(options: SglangOptions, ports: Ports) -> tuple[EventSource, ...]:
    if not options.prefix_cache:
        return ()
    events = _endpoint(options, "events", ports.events)
    if events.startswith("ipc:"):
        return (EventSource(events, _endpoint(options, "replay", ports.replay)),)
    return tuple(
        EventSource(
            f"tcp://{options.transfer_host}:{ports.events + rank}",
            f"tcp://{options.transfer_host}:{ports.replay + rank}",
        )
        for rank in range(options.parallel.dp)
    )
