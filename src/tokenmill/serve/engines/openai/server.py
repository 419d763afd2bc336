"""A server from our side: where it is, and which models it lists.

Exists so that the engine need not care which kind of server it is. It must not know requests.
"""

from __future__ import annotations

import asyncio
from typing import Final
from urllib.parse import urlsplit

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.errors import ConfigError, ProtocolError, WorkerLost
from tokenmill.serve.engines.openai.wire import ModelCard, failure_of, read_models
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.spec.models import ALL_MODELS

_log = structlog.get_logger(__name__)

ASK_TIMEOUT_S: Final = 15.0
"""For a list of models from the far side of the world."""

POLL_S: Final = 0.5
_SHOWN: Final = 20


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked of the server. ``model``: what it calls the model; empty: the request says which.
    ``offers``: models that a request may name. ``context_tokens`` 0: not known."""

    model: str
    offers: list[str]
    context_tokens: int


def base_of(attach: str) -> str:
    """Return the address below which ``/v1`` is. Raises ConfigError."""
    parts = urlsplit(attach)
    if parts.username or parts.password:
        raise ConfigError("attach: put the key into attach_key, not into the address", param="attach")
    return attach.rstrip("/").removesuffix("/v1")


async def ask(client: HttpClient, path: str, name: str, clock: Clock, timeout_s: float) -> ServerFacts:
    """Ask the server which models it has, and find ours: ``path``, as the server calls it, or ``name``, as
    clients do; neither, or "*": all of them.

    Raises ConfigError where it is not there or the key is refused, WorkerLost where the server does not
    answer in time. Cancelled: nothing changes.
    """
    cards = await _listed(client, clock, timeout_s)
    wanted = path or ("" if name == ALL_MODELS else name)
    if cards is None:
        if not wanted:
            why = f"{client.base_url} lists no models; name the one that you mean: model: {{name: ...}}"
            raise ConfigError(why, param="model")
        _log.warning("the server lists no models", server=client.base_url, model=wanted)
        return ServerFacts(model=wanted, offers=[], context_tokens=0)
    if not wanted:
        contexts = [card.context_tokens for card in cards if card.context_tokens]
        return ServerFacts(
            model="", offers=[card.id for card in cards], context_tokens=min(contexts, default=0)
        )
    card = _find(cards, wanted, sole=not path)
    if card is None:
        names = ", ".join(each.id for each in cards[:_SHOWN]) or "none"
        what = "model.path" if path else "model.name"
        raise ConfigError(f"{what}: {client.base_url} has no {wanted!r}; it has {names}", param="model")
    return ServerFacts(model=card.id, offers=[], context_tokens=card.context_tokens)


def _find(cards: list[ModelCard], wanted: str, *, sole: bool) -> ModelCard | None:
    """Return the one of that name, also without the tag that Ollama adds; ``sole``: or the only one."""
    for card in cards:
        if card.id in (wanted, f"{wanted}:latest"):
            return card
    return cards[0] if sole and len(cards) == 1 else None


async def _listed(client: HttpClient, clock: Clock, timeout_s: float) -> list[ModelCard] | None:
    """Return the server's models; None: it does not list them."""
    deadline = clock.now() + timeout_s
    while True:
        try:
            reply = await client.request("GET", "/v1/models", timeout_s=ASK_TIMEOUT_S)
            failure = failure_of(reply.status, reply.body)
            if reply.status in (401, 403):
                raise ConfigError(
                    f"attach_key: {client.base_url} refuses it ({failure.message})", param="attach_key"
                )
            if reply.status in (404, 405, 501):
                return None
            if reply.status == 200:
                return read_models(reply.body)
            why = f"{client.base_url}/v1/models answers {reply.status}: {failure.message}"
        except ProtocolError as error:
            raise ConfigError(f"attach: {client.base_url}: {error.message}", param="attach") from error
        except WorkerLost as error:
            why = error.message
        if clock.now() > deadline:
            raise WorkerLost(why)
        await asyncio.sleep(POLL_S)
