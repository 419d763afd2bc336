"""A vLLM server from our side: asked what it is.

Exists so that the engine need not care who started the server. It must not know requests.
"""

from __future__ import annotations

import msgspec
import structlog

from tokenmill.serve.engines.kv_events.rank_events import EventSource
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.questions import ASK_TIMEOUT_S, get, served_model, version_of
from tokenmill.serve.engines.vllm.metrics import read_metrics
from tokenmill.serve.engines.vllm.wire import GENERATE_PATH

_log = structlog.get_logger(__name__)

FALLBACK_BLOCK_TOKENS = 16
"""vLLM's own default on GPUs."""

FALLBACK_BLOCKS = 1024
"""KV blocks assumed where the server does not tell."""


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


async def ask(client: HttpClient, model: str, sources: tuple[EventSource, ...] | None) -> ServerFacts:
    """Learn what the server is. ``model``: the name that is wanted, "" for its first. ``sources``: where its
    events are; None: it is asked. Raises ConfigError where it does not serve that model.
    """
    unknown: list[str] = []
    card = await served_model(client, model)
    version = await version_of(client)
    gauges = read_metrics((await get(client, "/metrics")).body.decode(errors="replace"))
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


async def _has_token_route(client: HttpClient) -> bool:
    """An empty request is refused for what it lacks, where the route is there (403: it is turned off)."""
    reply = await client.request("POST", GENERATE_PATH, body=b"{}", timeout_s=ASK_TIMEOUT_S)
    return reply.status in (400, 422)


async def _sources(client: HttpClient) -> tuple[EventSource, ...]:
    """Read ``/kv_event_sources`` where there is one; a star in an endpoint is the server's host."""
    reply = await get(client, "/kv_event_sources")
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
