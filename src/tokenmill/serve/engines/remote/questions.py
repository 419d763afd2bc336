"""Questions that every server of OpenAI's API answers. It must not know which engine it is."""

from __future__ import annotations

import msgspec

from tokenmill.errors import ConfigError, WorkerFailed
from tokenmill.serve.engines.remote.http_client import HttpClient, HttpReply

ASK_TIMEOUT_S = 10.0
"""For a question that a living server answers at once."""


class ModelCard(msgspec.Struct):
    """A model of ``/v1/models``. ``root``: what it was loaded from; ``max_model_len``: tokens."""

    id: str
    root: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    data: list[ModelCard] = []


class _Version(msgspec.Struct):
    version: str = ""


async def get(client: HttpClient, path: str) -> HttpReply:
    """Ask for ``path``. Raises WorkerLost, ProtocolError."""
    return await client.request("GET", path, timeout_s=ASK_TIMEOUT_S)


async def served_model(client: HttpClient, wanted: str, *other_names: str) -> ModelCard:
    """Return the model that is called ``wanted``, the first where that is "", and the only one in any case.
    ``other_names``: what ``wanted`` may say of whichever model it is. Raises ConfigError.
    """
    cards = await _model_cards(client)
    if not wanted or wanted in other_names:
        wanted = cards[0].id if cards else ""
    named = [card for card in cards if wanted in (card.id, card.root)]
    if named or len(cards) == 1:
        return named[0] if named else cards[0]
    names = ", ".join(sorted(card.id for card in cards)) or "none"
    raise ConfigError(f"{client.base_url} does not serve {wanted!r}; it has {names}", param="attach")


async def version_of(client: HttpClient) -> str:
    """Return what ``/version`` says, "" where it says nothing of use."""
    reply = await get(client, "/version")
    try:
        return msgspec.json.decode(reply.body, type=_Version).version
    except msgspec.DecodeError:
        return ""


async def metrics_text(client: HttpClient, timeout_s: float) -> str:
    """Return what ``/metrics`` says. Raises WorkerLost, WorkerFailed."""
    reply = await client.request("GET", "/metrics", timeout_s=timeout_s)
    if reply.status != 200:
        raise WorkerFailed(f"{client.base_url}/metrics answered with status {reply.status}")
    return reply.body.decode(errors="replace")


async def _model_cards(client: HttpClient) -> list[ModelCard]:
    reply = await get(client, "/v1/models")
    try:
        return msgspec.json.decode(reply.body, type=_Models).data
    except msgspec.DecodeError as error:
        raise ConfigError(f"{client.base_url}/v1/models: {error}", param="attach") from error
