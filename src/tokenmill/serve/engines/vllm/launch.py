"""The command line of ``vllm serve`` for a worker's role. Plain functions: settings in, words out.

Read against vLLM 0.32.0. What the role needs is set here; what the user says wins, unless the worker could
not do its work with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.remote.options import LOOPBACK, ServerOptions
from tokenmill.serve.engines.vllm.connector.settings import CONNECTOR, ConnectorSettings, transfer_config

CONNECTOR_PATH = Path(__file__).parent / "connector" / "on_path"
"""What goes on vLLM's path for our own KV connector: a folder with one module."""

KV_LEASE_S = 30.0
"""How long vLLM's connectors keep a finished prefill's blocks for a decode that nobody has asked for."""

OURS = {
    "host": "the worker chooses it, so that nobody else reaches the engine; use attach for one of your own",
    "port": "the worker chooses it, so that replicas do not collide; use attach for a server of your own",
    "model": "it follows model.path",
    "served_model_name": "it follows model.name",
    "uds": "the worker reaches the engine by host and port",
    "api_key": "nobody else reaches the engine; use attach and attach_key for one of your own",
    "headless": "the worker asks the engine over HTTP; use attach for several machines",
    "tokens_only": "the worker needs the other routes too; enable_scale_out adds the one for tokens",
    "disable_log_stats": "the worker reads the engine's metrics",
    "tensor_parallel_size": "write parallel: {tp: N}",
    "pipeline_parallel_size": "write parallel: {pp: N}",
    "data_parallel_size": "write parallel: {dp: N}",
    "enable_prefix_caching": "write prefix_cache",
    "kv_events_config": "the worker reads the events; prefix_cache: false turns them off",
}
"""Options that ``engine_args`` may not set, and why."""

_KV_ROLES = {
    Role.PREFILL: ("kv_producer", "kv_both"),
    Role.DECODE: ("kv_consumer", "kv_both"),
    Role.BOTH: ("kv_producer", "kv_consumer", "kv_both"),
}


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """Where a launched server listens and hands over.

    ``events``, ``replay``: ZMQ endpoints that the first data-parallel rank binds; rank r binds the port r
    above. ``side_channel_host``: where servers that fetch from this one find it. ``connector``: of our own KV
    connector; None: vLLM's NIXL connector is used.
    """

    port: int
    events: str
    replay: str
    side_channel_port: int
    host: str = LOOPBACK
    side_channel_host: str = LOOPBACK
    connector: ConnectorSettings | None = None


def serve_arguments(options: ServerOptions, places: Places) -> list[str]:
    """Return the words after ``vllm serve``. Raises ConfigError for arguments that cannot be."""
    given = {_name(name): value for name, value in options.engine_args.items()}
    _refuse(given)
    words: dict[str, str | None] = {
        "host": places.host,
        "port": str(places.port),
        "served_model_name": options.model_name,
        "enable_prompt_tokens_details": None,
        "disable_uvicorn_access_log": None,
    }
    words |= {name: str(number) for name, number in _numbers(options).items() if number}
    if options.parallel.ep > 1:
        words["enable_expert_parallel"] = None
    if options.dtype != "auto":
        words["dtype"] = options.dtype
    if options.prefix_cache:
        words["kv_events_config"] = _events_config(places)
    else:
        words["no_enable_prefix_caching"] = None
    if options.role is not Role.BOTH:
        words["kv_transfer_config"] = _transfer_config(options.role, places.connector)
    if "kv_transfer_config" in given:
        _check_transfer_config(options.role, places.connector, given["kv_transfer_config"])
    for name, text in given.items():
        words.pop(name.removeprefix("no_"), None)
        words[_option(name, text)] = _value(text)
    flat = [options.model]
    for name, value in words.items():
        flat.append(f"--{name.replace('_', '-')}")
        if value is not None:
            flat.append(value)
    return flat


def _numbers(options: ServerOptions) -> dict[str, int]:
    """Return the sizes; 0 leaves vLLM's own."""
    return {
        "tensor_parallel_size": options.parallel.tp if options.parallel.tp > 1 else 0,
        "pipeline_parallel_size": options.parallel.pp if options.parallel.pp > 1 else 0,
        "data_parallel_size": options.parallel.dp if options.parallel.dp > 1 else 0,
        "block_size": options.block_tokens,
        "num_gpu_blocks_override": options.kv_blocks,
        "kv_cache_memory_bytes": options.kv_memory_mb * 2**20,
        "max_model_len": options.max_model_len,
        "max_num_seqs": options.max_sequences,
        "max_num_batched_tokens": options.token_budget,
    }


def serve_environment(places: Places) -> dict[str, str]:
    """Return environment variables that the server needs; the user's ``engine_env`` wins over them."""
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": places.side_channel_host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(places.side_channel_port),
        "VLLM_NO_USAGE_STATS": "1",
    }


def connector_environment(options: ServerOptions, places: Places) -> dict[str, str]:
    """Return what lets vLLM find our own connector: a folder with nothing else in it, in front of the path
    that the user gives. Nothing else of our environment gets into vLLM's.
    """
    if places.connector is None or options.role is Role.BOTH:
        return {}
    given = options.engine_env.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(CONNECTOR_PATH), given)))}


def kv_lease_s(arguments: Mapping[str, str]) -> float:
    """Return how long a launched prefill server keeps a cache that nobody asks for, in seconds."""
    text = next((value for name, value in arguments.items() if _name(name) == "kv_transfer_config"), "{}")
    with contextlib.suppress(msgspec.DecodeError):
        return float(msgspec.json.decode(text, type=_Transfer).kv_connector_extra_config.kv_lease_duration)
    return KV_LEASE_S


class _Extra(msgspec.Struct):
    kv_lease_duration: float = KV_LEASE_S


class _Transfer(msgspec.Struct):
    kv_connector_extra_config: _Extra = msgspec.field(default_factory=_Extra)


def _name(name: str) -> str:
    return name.replace("-", "_").lstrip("_")


def _refuse(given: Mapping[str, str]) -> None:
    for name in given:
        why = OURS.get(name.removeprefix("no_"))
        if why is not None:
            raise ConfigError(f"engine_args: {name} cannot be set: {why}", param="engine_args")


def _events_config(places: Places) -> str:
    return _json(
        {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": places.events,
            "replay_endpoint": places.replay,
        }
    )


def _transfer_config(role: Role, connector: ConnectorSettings | None) -> str:
    kv_role = _KV_ROLES[role][0]
    if connector is not None:
        return _json(transfer_config(connector, kv_role))
    return _json({"kv_connector": "NixlConnector", "kv_role": kv_role})


def _check_transfer_config(role: Role, connector: ConnectorSettings | None, text: str) -> None:
    try:
        config = msgspec.json.decode(text, type=dict[str, object])
    except msgspec.DecodeError as error:
        raise ConfigError(
            f"engine_args: kv_transfer_config is no JSON object: {error}", param="engine_args"
        ) from error
    allowed = _KV_ROLES[role]
    if config.get("kv_role") not in allowed:
        raise ConfigError(
            f"engine_args: kv_transfer_config has kv_role {config.get('kv_role')!r}, "
            f"but a {role.value} worker needs {' or '.join(allowed)}",
            param="engine_args",
        )
    if connector is not None and config.get("kv_connector") != CONNECTOR:
        raise ConfigError(
            f"engine_args: kv_transfer_config names the kv_connector {config.get('kv_connector')!r}, but the "
            f"stage says kv_connector: tokenmill, which is {CONNECTOR!r}; remove one of the two",
            param="engine_args",
        )


def _option(name: str, value: str) -> str:
    return f"no_{name}" if value.lower() == "false" else name


def _value(value: str) -> str | None:
    return None if value.lower() in ("true", "false", "") else value


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
