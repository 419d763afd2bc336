"""The command line of ``vllm serve`` for a worker's role. Plain functions: settings in, words out.

Read against vLLM 0.32.0. What the role needs is set here; what the user says wins, unless the worker could
not do its work with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role

OURS = {
    "host": "the worker chooses it, so that nobody else reaches the engine; use attach for one of your own",
    "port": "the worker chooses it, so that replicas do not collide; use attach for a server of your own",
    "served_model_name": "it follows model.name",
    "tensor_parallel_size": "write parallel: {tp: N}",
    "pipeline_parallel_size": "write parallel: {pp: N}",
    "data_parallel_size": "write parallel: {dp: N}",
    "kv_events_config": "the worker reads the events; prefix_cache: false turns them off",
}
"""Options that ``engine_args`` may not set, and why."""

_KV_ROLES = {
    Role.PREFILL: ("kv_producer", "kv_both"),
    Role.DECODE: ("kv_consumer", "kv_both"),
    Role.BOTH: ("kv_producer", "kv_consumer", "kv_both"),
}


class Parallelism(msgspec.Struct, frozen=True, kw_only=True):
    """Ranks: tensor, pipeline, data (of the attention), experts spread over all of them."""

    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1


class VllmSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a launched server is told. ``arguments``: the user's engine_args, names as vLLM's with "_" or "-".

    0 leaves vLLM's own default. ``events``, ``replay``: ZMQ endpoints that the first data-parallel rank
    binds; rank r binds the port r above.
    """

    model: str
    served_name: str
    role: Role
    port: int
    events: str
    replay: str
    side_channel_port: int
    host: str = "127.0.0.1"
    parallel: Parallelism = Parallelism()
    block_tokens: int = 0
    kv_blocks: int = 0
    kv_memory_mb: int = 0
    max_model_len: int = 0
    max_sequences: int = 0
    token_budget: int = 0
    dtype: str = "auto"
    prefix_cache: bool = True
    arguments: Mapping[str, str] = {}


def serve_arguments(settings: VllmSettings) -> list[str]:
    """Return the words after ``vllm serve``. Raises ConfigError for arguments that cannot be."""
    given = {name.replace("-", "_").lstrip("_"): value for name, value in settings.arguments.items()}
    _refuse(given)
    options: dict[str, str | None] = {
        "host": settings.host,
        "port": str(settings.port),
        "served_model_name": settings.served_name,
        "enable_prompt_tokens_details": None,
    }
    numbers = {
        "tensor_parallel_size": settings.parallel.tp if settings.parallel.tp > 1 else 0,
        "pipeline_parallel_size": settings.parallel.pp if settings.parallel.pp > 1 else 0,
        "data_parallel_size": settings.parallel.dp if settings.parallel.dp > 1 else 0,
        "block_size": settings.block_tokens,
        "num_gpu_blocks_override": settings.kv_blocks,
        "kv_cache_memory_bytes": settings.kv_memory_mb * 2**20,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_sequences,
        "max_num_batched_tokens": settings.token_budget,
    }
    options |= {name: str(number) for name, number in numbers.items() if number}
    if settings.parallel.ep > 1:
        options["enable_expert_parallel"] = None
    if settings.dtype != "auto":
        options["dtype"] = settings.dtype
    if settings.prefix_cache:
        options["kv_events_config"] = _events_config(settings)
    else:
        options["no_enable_prefix_caching"] = None
    if settings.role is not Role.BOTH:
        options["kv_transfer_config"] = _transfer_config(settings.role)
    if "kv_transfer_config" in given:
        _check_transfer_config(settings.role, given["kv_transfer_config"])
    options |= {_option(name, value): _value(value) for name, value in given.items()}
    words = [settings.model]
    for name, value in options.items():
        words.append(f"--{name.replace('_', '-')}")
        if value is not None:
            words.append(value)
    return words


def serve_environment(settings: VllmSettings) -> dict[str, str]:
    """Return environment variables that the server needs; the user's ``engine_env`` wins over them."""
    return {
        "VLLM_NIXL_SIDE_CHANNEL_HOST": settings.host,
        "VLLM_NIXL_SIDE_CHANNEL_PORT": str(settings.side_channel_port),
        "VLLM_NO_USAGE_STATS": "1",
    }


def _refuse(given: Mapping[str, str]) -> None:
    for name in given:
        if name in OURS:
            raise ConfigError(f"engine_args: {name} cannot be set: {OURS[name]}", param="engine_args")


def _events_config(settings: VllmSettings) -> str:
    return _json(
        {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": settings.events,
            "replay_endpoint": settings.replay,
        }
    )


def _transfer_config(role: Role) -> str:
    return _json({"kv_connector": "NixlConnector", "kv_role": _KV_ROLES[role][0]})


def _check_transfer_config(role: Role, text: str) -> None:
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


def _option(name: str, value: str) -> str:
    return f"no_{name}" if value.lower() == "false" else name


def _value(value: str) -> str | None:
    return None if value.lower() in ("true", "false", "") else value


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
