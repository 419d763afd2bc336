"""An SGLang server from our side: asked what it is.

Exists so that the engine need not care who started the server. It must not know requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import structlog

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.kv_events.rank_events import EventSource
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.questions import ModelCard, get, served_model
from tokenmill.serve.engines.sglang.launch import MODES

_log = structlog.get_logger(__name__)

FALLBACK_TOKENS = 16_384
"""KV tokens assumed where the server does not tell."""

FALLBACK_LENGTH = 4096
"""Context length assumed where the server does not tell."""

SMALLEST_BLOCK = 8
"""Tokens in a block below which each costs the router more than a hit on it saves."""

DEFAULT_BOOTSTRAP_PORT = 8998
"""SGLang's own."""

_ANYWHERE = ("*", "0.0.0.0", "[::]", "::")  # noqa: S104  compared with, not bound


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of a server. ``mode``: its ``--disaggregation-mode``. ``ranks``: data-parallel ones.
    ``vocab_size``: 0: not known. ``unknown``: what it did not tell, and what is assumed instead."""

    model: str
    model_path: str
    version: str
    mode: str
    max_model_len: int
    block_tokens: int
    kv_blocks: int
    bootstrap_port: int
    kv_dtype: str
    has_metrics: bool
    sources: tuple[EventSource, ...]
    ranks: int = 1
    vocab_size: int = 0
    eos_token_ids: tuple[int, ...] = ()
    unknown: tuple[str, ...] = ()


class _EventsConfig(msgspec.Struct):
    publisher: str = "null"
    endpoint: str = "tcp://*:5557"
    replay_endpoint: str | None = None
    bind: bool | None = None


class _ServerInfo(msgspec.Struct):
    """Of ``/server_info`` what matters here: settings as they were resolved, and the KV room of one rank."""

    version: str = ""
    model_path: str = ""
    served_model_name: str | None = None
    disaggregation_mode: str | None = "null"
    disaggregation_bootstrap_port: int | None = DEFAULT_BOOTSTRAP_PORT
    page_size: int | None = None
    context_length: int | None = None
    dp_size: int | None = 1
    kv_cache_dtype: str | None = "auto"
    max_total_num_tokens: int | None = None
    kv_events_config: str | None = None
    enable_metrics: bool | None = False
    skip_tokenizer_init: bool | None = False
    disable_radix_cache: bool | None = False


class _ModelConfig(msgspec.Struct):
    vocab_size: int = 0
    eos_token_id: int | list[int] | None = None


async def ask(
    client: HttpClient, model: str, role: Role, sources: tuple[EventSource, ...] | None
) -> ServerFacts:
    """Learn what the server is. ``model``: the name that is wanted, "" for whatever it has. ``sources``:
    where its events are; None: it is asked. Raises ConfigError where it is not what the worker needs.
    """
    info = await _server_info(client)
    card = await served_model(client, model, info.model_path, Path(info.model_path).name)
    mode = info.disaggregation_mode or MODES[Role.BOTH]
    if mode != MODES[role]:
        raise ConfigError(
            f"{client.base_url} runs with --disaggregation-mode {mode}, but role {role.value} needs "
            f"{MODES[role]}; change the stage's role, or start the server anew",
            param="attach",
        )
    facts = _facts(info, card, sources if sources is not None else _event_sources(info, client.host))
    for what in facts.unknown:
        _log.warning("the engine does not tell", engine=client.base_url, what=what)
    return facts


def _facts(info: _ServerInfo, card: ModelCard, sources: tuple[EventSource, ...]) -> ServerFacts:
    block_tokens = info.page_size or 1
    length = card.max_model_len or info.context_length
    config = _config(info.model_path)
    return ServerFacts(
        model=card.id,
        model_path=info.model_path or card.id,
        version=info.version,
        mode=info.disaggregation_mode or MODES[Role.BOTH],
        max_model_len=length or FALLBACK_LENGTH,
        block_tokens=block_tokens,
        kv_blocks=(info.max_total_num_tokens or FALLBACK_TOKENS) * (info.dp_size or 1) // block_tokens,
        bootstrap_port=info.disaggregation_bootstrap_port or DEFAULT_BOOTSTRAP_PORT,
        kv_dtype=info.kv_cache_dtype or "auto",
        has_metrics=bool(info.enable_metrics),
        sources=sources,
        ranks=info.dp_size or 1,
        vocab_size=config.vocab_size,
        eos_token_ids=_eos(config),
        unknown=tuple(_unknown(info, length, sources)),
    )


def _unknown(info: _ServerInfo, length: int | None, sources: tuple[EventSource, ...]) -> Iterator[str]:
    """Say what a server did not tell, and what is done about it."""
    if not info.max_total_num_tokens:
        yield f"KV room: {FALLBACK_TOKENS} tokens are assumed"
    if (info.page_size or 1) < SMALLEST_BLOCK and not info.disable_radix_cache:
        yield f"blocks worth sharing, theirs hold {info.page_size or 1}: start it with --page-size 16"
    if not sources and not info.disable_radix_cache:
        yield "KV events: prefix hits are predicted from what was sent there"
    if not length:
        yield f"context length: {FALLBACK_LENGTH} is assumed"
    if not info.enable_metrics:
        yield "metrics: start it with --enable-metrics"


async def _server_info(client: HttpClient) -> _ServerInfo:
    """Read ``/server_info``, on older servers ``/get_server_info``. Raises ConfigError."""
    reply = await get(client, "/server_info")
    if reply.status == 404:
        reply = await get(client, "/get_server_info")
    if reply.status in (401, 403):
        raise ConfigError(f"{client.base_url} asks for a key: set attach_key", param="attach_key")
    if reply.status != 200:
        raise ConfigError(
            f"{client.base_url}/server_info answers {reply.status}; is it an SGLang server?", param="attach"
        )
    try:
        return msgspec.json.decode(reply.body, type=_ServerInfo)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{client.base_url}/server_info: {error}", param="attach") from error


def _event_sources(info: _ServerInfo, host: str) -> tuple[EventSource, ...]:
    """Read the publisher's configuration: rank r binds the port r above; where it does not bind, but connects
    to somebody, there is nothing to listen to."""
    if not info.kv_events_config or info.disable_radix_cache:
        return ()
    try:
        config = msgspec.json.decode(info.kv_events_config, type=_EventsConfig)
    except msgspec.DecodeError:
        return ()
    binds = config.bind
    if binds is None:
        binds = config.endpoint.startswith("ipc:") or any(sign in config.endpoint for sign in _ANYWHERE)
    if config.publisher != "zmq" or not binds:
        return ()
    sources = []
    for rank in range(info.dp_size or 1):
        events = _at(config.endpoint, host, rank)
        if events is not None:
            sources.append(EventSource(events, _at(config.replay_endpoint, host, rank)))
    return tuple(sources)


def _at(endpoint: str | None, host: str, rank: int) -> str | None:
    """Return where a rank of the server at ``host`` is reached; None where it cannot be."""
    if not endpoint or endpoint.startswith("inproc:"):
        return None
    if not endpoint.startswith("tcp://"):
        return endpoint
    place, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    if not port.isdecimal():
        return None
    shown = f"[{host}]" if ":" in host else host
    return f"tcp://{shown if place in _ANYWHERE else place}:{int(port) + rank}"


def _config(model_path: str) -> _ModelConfig:
    """Read the model's own description where its folder is on this machine."""
    file = Path(model_path) / "config.json"
    try:
        raw = msgspec.json.decode(file.read_bytes(), type=dict[str, object])
        nested = raw.get("text_config")
        known: Mapping[str, object] = {**raw, **nested} if isinstance(nested, dict) else raw
        return msgspec.convert(known, _ModelConfig)
    except (OSError, msgspec.DecodeError):
        return _ModelConfig()


def _eos(config: _ModelConfig) -> tuple[int, ...]:
    eos = config.eos_token_id
    if eos is None:
        return ()
    return (eos,) if isinstance(eos, int) else tuple(eos)
