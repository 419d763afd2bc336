"""A TensorRT-LLM server from our side: asked what it is.

Exists so that the engine need not care who started the server. It must not know requests from frontends.
"""

from __future__ import annotations

import contextlib

import msgspec
import structlog

from tokenmill.errors import ConfigError, ProtocolError, TokenmillError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.questions import ASK_TIMEOUT_S, get, served_model, version_of
from tokenmill.serve.engines.trtllm.checkpoint import CheckpointFacts
from tokenmill.serve.engines.trtllm.launch import DEFAULT_BLOCK_TOKENS
from tokenmill.serve.engines.trtllm.metrics import IterationStats, read_prometheus
from tokenmill.serve.engines.trtllm.submission import FIRST_GLOBAL_ID, PATH, Dialect
from tokenmill.serve.engines.trtllm.wire import CONTEXT_ONLY, ID_FIELD, Params, failure_of, read_chunk

_log = structlog.get_logger(__name__)

TRIAL_TIMEOUT_S = 120.0
"""For one token: the first request of a server may compile kernels."""

FALLBACK_BLOCKS = 1024
"""KV blocks assumed where the server does not tell."""

FALLBACK_MODEL_LEN = 4096
"""Context length assumed where neither the server nor a checkpoint folder tells."""


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What was learned of a server. ``unknown``: what it did not tell, and what is assumed instead."""

    dialect: Dialect
    version: str
    max_model_len: int
    vocab_size: int
    block_tokens: int
    kv_blocks: int
    unknown: tuple[str, ...] = ()


class LoadReader:
    """Reads a server's load, in the way that it offers."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._stats = IterationStats()
        self._prometheus = True
        self._last: EngineGauges | None = None

    async def begin(self) -> EngineGauges | None:
        """Return the load, if it is told; what has been computed before counts no more."""
        with contextlib.suppress(TokenmillError):
            await self.read()
        self._stats.count_from_here()
        return self._last

    async def read(self) -> EngineGauges | None:
        """Return the load; None: the server has told nothing new. Raises WorkerLost, ProtocolError."""
        reply = await self._client.request("GET", "/metrics", timeout_s=ASK_TIMEOUT_S)
        if reply.status == 200 and self._stats.read(reply.body):
            self._last = self._stats.gauges()
            return self._last
        if self._prometheus:
            reply = await self._client.request("GET", "/prometheus/metrics", timeout_s=ASK_TIMEOUT_S)
            self._prometheus = reply.status == 200
            self._last = read_prometheus(reply.body.decode(errors="replace")) or self._last
            return self._last if self._prometheus else None
        return None


class _Schema(msgspec.Struct):
    properties: dict[str, object] = {}


class _Components(msgspec.Struct):
    schemas: dict[str, _Schema] = {}


class _OpenApi(msgspec.Struct):
    components: _Components = msgspec.field(default_factory=_Components)


async def ask_dialect(client: HttpClient, checkpoint: CheckpointFacts) -> tuple[Dialect, str]:
    """Return what the server understands, and its version. Raises ConfigError, WorkerLost."""
    model = (await served_model(client, "")).id
    schemas = await _schemas(client)
    asked, disagg = schemas.get("CompletionRequest"), schemas.get("DisaggregatedParams")
    dialect = Dialect(
        model=model,
        fields=frozenset(asked.properties) if asked is not None and asked.properties else None,
        disagg_fields=frozenset(disagg.properties) if disagg is not None else await _try_ids(client, model),
        end_ids=frozenset(checkpoint.end_ids),
    )
    return dialect, await version_of(client)


async def try_one_token(client: HttpClient, dialect: Dialect) -> None:
    """Make the server generate a token, so that it tells its metrics, and see that token ids come back.
    Raises ConfigError where they do not.
    """
    fields = {"model": dialect.model, "prompt": [1], "max_tokens": 1, "detokenize": False}
    body = msgspec.json.encode(fields)
    reply = await client.request("POST", PATH, body=body, timeout_s=TRIAL_TIMEOUT_S)
    if reply.status != 200:
        why = failure_of(reply.status, reply.body).message
        raise ConfigError(f"{client.base_url} refuses to generate a token: {why}", param="attach")
    try:
        choices = read_chunk(reply.body).choices
    except ProtocolError as error:
        raise ConfigError(f"{client.base_url}: {error.message}", param="attach") from error
    if not choices or not choices[0].token_ids:
        raise ConfigError(
            f"{client.base_url} sends no token ids: its /v1/completions must know detokenize", param="attach"
        )


def facts_of(
    dialect: Dialect, version: str, checkpoint: CheckpointFacts, *, blocks: int, block_tokens: int, limit: int
) -> ServerFacts:
    """Put together what was learned; ``limit``: the context length that the user gave, or 0. What must be
    assumed is logged."""
    unknown: list[str] = []
    if not blocks:
        unknown.append(f"KV blocks: {FALLBACK_BLOCKS} are assumed")
    if not block_tokens:
        unknown.append(f"tokens a block: {DEFAULT_BLOCK_TOKENS} are assumed")
    known = checkpoint.max_model_len
    if not limit and not known:
        unknown.append(f"context length: {FALLBACK_MODEL_LEN} is assumed; set max_model_len")
    if not checkpoint.end_ids:
        unknown.append("end-of-sequence tokens: they stay in the output; name the checkpoint folder as model")
    for what in unknown:
        _log.warning("the engine does not tell", engine="trtllm", what=what)
    return ServerFacts(
        dialect=dialect,
        version=version,
        max_model_len=min(limit, known) if limit and known else limit or known or FALLBACK_MODEL_LEN,
        vocab_size=checkpoint.vocab_size,
        block_tokens=block_tokens or DEFAULT_BLOCK_TOKENS,
        kv_blocks=blocks or FALLBACK_BLOCKS,
        unknown=tuple(unknown),
    )


def warn_of_role(dialect: Dialect, role: Role) -> None:
    """Say what a role cannot have from this server."""
    known = dialect.disagg_fields
    if role is Role.PREFILL and known is not None and ID_FIELD not in known:
        _log.warning("this version numbers handoffs by itself; use one prefill worker a decode worker")


async def _schemas(client: HttpClient) -> dict[str, _Schema]:
    """Read ``/openapi.json``, which the server's web framework makes from its request types."""
    try:
        reply = await get(client, "/openapi.json")
        return (
            msgspec.json.decode(reply.body, type=_OpenApi).components.schemas if reply.status == 200 else {}
        )
    except (TokenmillError, msgspec.DecodeError):
        return {}


async def _try_ids(client: HttpClient, model: str) -> frozenset[str]:
    """Find out whether a server that does not tell its fields takes ids from outside: a request that no
    version takes is refused with the names of all fields that this one does not know."""
    params: Params = {"request_type": CONTEXT_ONLY, ID_FIELD: FIRST_GLOBAL_ID, "no_such_field": 0}
    body = msgspec.json.encode({"model": model, "prompt": [1], "disaggregated_params": params})
    reply = await client.request("POST", PATH, body=body, timeout_s=ASK_TIMEOUT_S)
    words = reply.body.decode(errors="replace")
    told = 400 <= reply.status < 500 and "no_such_field" in words
    return frozenset((ID_FIELD,)) if told and ID_FIELD not in words else frozenset()
