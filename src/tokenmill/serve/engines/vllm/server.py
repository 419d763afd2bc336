"""A vLLM server from our side: started here or found running, and asked what it is.

Exists so that the engine need not care who started the server. It must not know requests.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError, TokenmillError, WorkerFailed
from tokenmill.serve.engines.remote.child import Child
from tokenmill.serve.engines.remote.http_client import HttpClient, HttpReply
from tokenmill.serve.engines.vllm.metrics import read_metrics
from tokenmill.serve.engines.vllm.wire import GENERATE_PATH

_log = structlog.get_logger(__name__)

ASK_TIMEOUT_S = 10.0
"""For a question that a living server answers at once."""

POLL_S = 0.25
"""Between two looks whether a starting server answers."""

FALLBACK_BLOCK_TOKENS = 16
"""vLLM's own default on GPUs."""

FALLBACK_BLOCKS = 1024
"""KV blocks assumed where the server does not tell."""


class EventSource(msgspec.Struct, frozen=True):
    """Where one data-parallel rank tells its KV events."""

    events: str
    replay: str | None = None


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of a server. ``unknown``: what it did not tell, and what is assumed instead."""

    model: str
    root: str
    version: str
    max_model_len: int
    block_tokens: int
    kv_blocks: int
    sources: tuple[EventSource, ...]
    token_route: bool = False
    """It has ``/inference/v1/generate``."""
    ranks: int = 1
    """Data-parallel ranks behind its one address."""
    unknown: tuple[str, ...] = ()


class _ModelCard(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[_ModelCard] = []


class _Version(msgspec.Struct):
    version: str = ""


async def wait_until_up(client: HttpClient, child: Child | None, clock: Clock, timeout_s: float) -> None:
    """Return when the server answers ``/health``. Raises ConfigError when it ends or is not up in time.

    Cancelled: nothing changes.
    """
    deadline = clock.now() + timeout_s
    died = asyncio.ensure_future(child.died()) if child is not None else None
    try:
        while True:
            if await _healthy(client):
                return
            if died is not None and died.done():
                raise ConfigError(died.result(), param="engine")
            if clock.now() > deadline:
                raise WorkerFailed(f"{client.base_url} did not come up within {timeout_s:g} s")
            await asyncio.sleep(POLL_S)
    finally:
        if died is not None:
            died.cancel()
            await asyncio.gather(died, return_exceptions=True)


async def ask(client: HttpClient, model: str, sources: tuple[EventSource, ...] | None) -> ServerFacts:
    """Learn what the server is. ``model``: the name that is wanted, "" for its first. ``sources``: where its
    events are; None: it is asked. Raises ConfigError where it does not serve that model.
    """
    unknown: list[str] = []
    card = await _model(client, model)
    version = await _version(client)
    gauges = read_metrics((await _get(client, "/metrics")).body.decode(errors="replace"))
    if not gauges.kv_blocks:
        unknown.append(f"KV blocks: {FALLBACK_BLOCKS} are assumed")
    if not gauges.block_tokens:
        unknown.append(f"block size: {FALLBACK_BLOCK_TOKENS} is assumed")
    if card.max_model_len is None:
        unknown.append("context length: 4096 is assumed")
    if sources is None:
        sources = await _sources(client)
        if not sources:
            unknown.append("KV events: prefix hits are predicted from what was sent there")
    facts = ServerFacts(
        model=card.id,
        root=card.root or card.id,
        version=version,
        max_model_len=card.max_model_len or 4096,
        block_tokens=gauges.block_tokens or FALLBACK_BLOCK_TOKENS,
        kv_blocks=gauges.kv_blocks or FALLBACK_BLOCKS,
        sources=sources,
        ranks=max(gauges.ranks, len(sources)),
        token_route=await _has_token_route(client),
        unknown=tuple(unknown),
    )
    for what in unknown:
        _log.warning("the engine does not tell", engine=client.base_url, what=what)
    return facts


def launch_command(engine_python: str, engine_command: str, *, here: bool = True) -> list[str]:
    """Return the words before the model: a Python that has vLLM, a command, or ``vllm`` on the path.

    ``here``: it runs on this machine, so that the Python must be there. Raises ConfigError.
    """
    if engine_command:
        return [*engine_command.split(), "serve"]
    if engine_python:
        if here and not Path(engine_python).exists():
            raise ConfigError(f"engine_python: there is no {engine_python}", param="engine_python")
        return [engine_python, "-m", "vllm.entrypoints.cli.main", "serve"]
    return ["vllm", "serve"]


async def _healthy(client: HttpClient) -> bool:
    try:
        return (await client.request("GET", "/health", timeout_s=ASK_TIMEOUT_S)).status == 200
    except TokenmillError:
        return False


async def _get(client: HttpClient, path: str) -> HttpReply:
    return await client.request("GET", path, timeout_s=ASK_TIMEOUT_S)


async def _model(client: HttpClient, wanted: str) -> _ModelCard:
    reply = await _get(client, "/v1/models")
    try:
        cards = msgspec.json.decode(reply.body, type=_Models).data
    except msgspec.DecodeError as error:
        raise ConfigError(f"{client.base_url}/v1/models: {error}", param="attach") from error
    for card in cards:
        if not wanted or wanted in (card.id, card.root):
            return card
    if len(cards) == 1:
        return cards[0]
    names = ", ".join(card.id for card in cards) or "none"
    raise ConfigError(f"{client.base_url} does not serve {wanted!r}; it has {names}", param="attach")


async def _version(client: HttpClient) -> str:
    reply = await _get(client, "/version")
    try:
        return msgspec.json.decode(reply.body, type=_Version).version
    except msgspec.DecodeError:
        return ""


async def _has_token_route(client: HttpClient) -> bool:
    """An empty request is refused for what it lacks, where the route is there (403: it is turned off)."""
    reply = await client.request("POST", GENERATE_PATH, body=b"{}", timeout_s=ASK_TIMEOUT_S)
    return reply.status in (400, 422)


async def _sources(client: HttpClient) -> tuple[EventSource, ...]:
    """Read ``/kv_event_sources`` where there is one; a star in an endpoint is the server's host."""
    reply = await _get(client, "/kv_event_sources")
    if reply.status != 200:
        return ()
    try:
        content = msgspec.json.decode(reply.body)
    except msgspec.DecodeError:
        return ()
    entries = content if isinstance(content, dict) else {}
    ranks = sorted((name for name in entries if str(name).isdigit()), key=int)
    sources = [_source(entries[rank], client.host) for rank in ranks]
    return tuple(source for source in sources if source is not None)


def _source(entry: object, host: str) -> EventSource | None:
    """Read one rank's publisher configuration."""
    if not isinstance(entry, dict) or not isinstance(entry.get("endpoint"), str):
        return None
    replay = entry.get("replay_endpoint")
    return EventSource(
        entry["endpoint"].replace("*", host),
        replay.replace("*", host) if isinstance(replay, str) else None,
    )
