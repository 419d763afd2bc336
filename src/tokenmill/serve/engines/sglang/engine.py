"""SGLang behind the ``Engine`` seam: a real server, launched or attached to, driven by token ids over HTTP.

Exists as the shell around the plain objects of this folder. It must not know frontends, routing or the desk.
What came in one turn of the loop leaves in one output, so that the frontends get few frames.
"""

from __future__ import annotations

import asyncio
from functools import partial

import structlog
import zmq

from tokenmill.clock import Clock
from tokenmill.errors import BadRequest, TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, HandoffLost, Item, Tokens
from tokenmill.protocol.kv_events import KvEvent
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.base import EngineInfo, EngineOutput, Sink
from tokenmill.serve.engines.kv_events.feed import RankFeed
from tokenmill.serve.engines.kv_events.rank_caches import RankCaches
from tokenmill.serve.engines.remote.books import LoadBooks
from tokenmill.serve.engines.remote.child import Child
from tokenmill.serve.engines.remote.http_client import Headers, HttpClient
from tokenmill.serve.engines.remote.ports import ReservedPorts
from tokenmill.serve.engines.remote.ranks import RankChoice
from tokenmill.serve.engines.sglang.constraints import CONSTRAINTS, grammar_params
from tokenmill.serve.engines.sglang.launch import EventSource, Ports, SglangOptions, plan_launch
from tokenmill.serve.engines.sglang.metrics import read_metrics
from tokenmill.serve.engines.sglang.server import ServerFacts, ask, is_healthy, wait_until_up
from tokenmill.serve.engines.sglang.submission import Submission
from tokenmill.serve.engines.sglang.wire import TRANSPORT

_log = structlog.get_logger(__name__)

METRICS_INTERVAL_S = 0.2
"""Between two readings of the server's metrics: a few milliseconds of its time each."""

METRICS_TIMEOUT_S = 10.0
"""For a reading of the metrics."""

HEALTH_INTERVAL_S = 10.0
"""Between two looks whether the server makes tokens: one token where it does nothing, else none."""

HEALTH_PATIENCE_S = 60.0
"""A server that has made no token for so long, though it was asked to, is taken for broken."""

_STOPPED = Failed(503, "engine_stopped", "the engine is stopping", retryable=True)


class SglangEngine:
    """``Engine`` for SGLang. Open requests are bounded by ``max_waiting`` plus ``max_sequences``."""

    def __init__(self, options: SglangOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._books = LoadBooks()
        self._open: dict[RequestId, Submission] = {}
        self._pending: list[tuple[RequestId, Item]] = []
        self._pending_events: list[KvEvent] = []
        self._flush_due = False
        self._sink: Sink | None = None
        self._facts: ServerFacts | None = None
        self._client: HttpClient | None = None
        self._child: Child | None = None
        self._failed: asyncio.Future[str] | None = None
        self._watches: list[asyncio.Task[None]] = []
        self._feeds: list[RankFeed] = []
        self._ports: ReservedPorts | None = None
        self._caches = RankCaches(1)
        self._choice: RankChoice | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    # Engine -------------------------------------------------------------------------------------------

    async def start(self, sink: Sink) -> EngineInfo:
        """Launch or find the server and wait until it serves. Raises ConfigError. Cancelled: stopped."""
        options = self._options
        self._sink = sink
        self._failed = asyncio.get_running_loop().create_future()
        try:
            sources = await self._launch() if not options.attach else None
            client = self._client or HttpClient(options.attach, headers=_credentials(options.api_key))
            self._client = client
            await wait_until_up(client, self._child, self._clock, options.start_timeout_s)
            self._facts = facts = await ask(client, options.model_name, options.role, sources)
        except BaseException:
            await self.stop()
            raise
        self._caches = RankCaches(facts.ranks)
        # A decode server keeps no prefixes, and knows best which of its ranks has room.
        chooses = facts.ranks > 1 and options.role is not Role.DECODE
        self._choice = RankChoice(self._caches, facts.block_tokens) if chooses else None
        self._read_events(facts.sources)
        self._watch(client, facts)
        return self._info(facts)

    def submit(self, request: GenerateRequest) -> None:
        """Send a request to the server."""
        assert self._client is not None
        assert self._facts is not None
        request_id = request.request_id
        options = self._options
        if len(self._open) >= options.max_sequences * self._facts.ranks + options.max_waiting:
            failure = Failed(429, "queue_full", "too many requests wait for this engine", retryable=True)
            self._say(request_id, failure)
            return
        refused = self._refusal(request)
        if refused is not None:
            self._say(request_id, refused)
            return
        submission = Submission(
            request,
            self._client,
            self._facts,
            self,
            bootstrap_host=self._bootstrap_host(),
            rank=self._choice.choose(request) if self._choice is not None else None,
        )
        self._open[request_id] = submission
        self._books.opened(request)
        submission.start()

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; unknown ids are ignored."""
        submission = self._open.get(request_id)
        if submission is not None:
            submission.cancel()

    def metrics(self) -> StepMetrics:
        """The load as last known."""
        return self._books.metrics(self._facts.kv_blocks if self._facts is not None else 0)

    async def failure(self) -> str:
        """Wait until the server is gone. Cancelled: nothing changes."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """End requests, and the server if it is ours. Cancelled: call it again."""
        for submission in tuple(self._open.values()):
            submission.fail(_STOPPED)
        self._flush()
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for feed in self._feeds:
            await feed.close()
        self._feeds = []
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        if self._client is not None:
            await self._client.close()
        if self._child is not None:
            await self._child.stop()
        if self._ports is not None:
            self._ports.release()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    # Books of submissions -----------------------------------------------------------------------------

    def said(self, request_id: RequestId, item: Item) -> None:
        """An item of a submission."""
        if isinstance(item, Tokens | Finished):
            self._books.made(len(item.tokens))
        if isinstance(item, Finished | Failed):
            self._open.pop(request_id, None)
            self._books.closed(request_id)
            if self._choice is not None:
                self._choice.closed(request_id)
        self._say(request_id, item)

    def progressed(self, request_id: RequestId) -> None:
        """A prompt is computed."""
        self._books.progressed(request_id)
        if self._choice is not None:
            self._choice.progressed(request_id)

    def handed_in(self) -> None:
        """A cache made elsewhere was taken over."""
        self._books.handoffs_in += 1

    def handed_out(self) -> None:
        """A cache was offered and taken."""
        self._books.handoffs_out += 1

    def handoff_failed(self, request_id: RequestId, reason: str, why: str) -> None:
        """A pair did not come together."""
        self._books.handoffs_failed[reason] += 1
        _log.warning("handoff failed; another pair may try", request=request_id, reason=reason, why=why)
        self._say(request_id, HandoffLost(reason, why))

    # Inside -------------------------------------------------------------------------------------------

    def _refusal(self, request: GenerateRequest) -> Failed | None:
        """What SGLang would not refuse itself: a token id outside of the vocabulary breaks its step."""
        assert self._facts is not None
        tokens = request.prompt
        if not tokens:
            return Failed(400, "empty_prompt", "the prompt has no tokens")
        limit = self._facts.vocab_size or 2**31
        if min(tokens) < 0 or max(tokens) >= limit:
            return Failed(400, "bad_token", f"the prompt has a token id that is not in 0..{limit - 1}")
        try:
            grammar_params(request.sampling.constraints)
        except BadRequest as error:
            return Failed(400, "bad_constraint", error.message)
        return None

    def _bootstrap_host(self) -> str:
        assert self._client is not None
        return self._client.host if self._options.attach else self._options.transfer_host

    def _say(self, request_id: RequestId, item: Item) -> None:
        self._pending.append((request_id, item))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._sink is None or not (self._pending or self._pending_events):
            return
        items, self._pending = self._pending, []
        events, self._pending_events = self._pending_events, []
        self._sink(EngineOutput(items, self.metrics(), events))

    def _on_events(self, rank: int, events: list[KvEvent]) -> None:
        told = self._caches.apply(rank, events)
        if told:
            self._pending_events += told
            self._flush_soon()

    async def _launch(self) -> tuple[EventSource, ...]:
        options = self._options
        self._ports = ReservedPorts(4, neighbours=max(1, options.parallel.dp))
        plan = plan_launch(options, Ports(*self._ports.ports))
        self._child = Child(f"sglang {options.role.value}", plan.command, plan.environment)
        self._client = HttpClient(plan.url, headers=_credentials(options.api_key))
        await self._child.start()
        return plan.sources

    def _read_events(self, sources: tuple[EventSource, ...]) -> None:
        if not sources:
            return
        self._context = zmq.Context()
        for rank, source in enumerate(sources):
            feed = RankFeed(self._context, source.events, source.replay, partial(self._on_events, rank))
            feed.start(from_now=False)
            self._feeds.append(feed)

    # Watching the server ------------------------------------------------------------------------------

    def _watch(self, client: HttpClient, facts: ServerFacts) -> None:
        watches = [self._watch_health(client)]
        if facts.has_metrics:
            watches.append(self._watch_metrics(client))
        if self._child is not None:
            watches.append(self._watch_child(self._child))
        self._watches = [asyncio.create_task(watch, name="watch sglang") for watch in watches]

    async def _watch_child(self, child: Child) -> None:
        """Tell when the process is gone. Cancelled: nothing changes."""
        self._break(await child.died())

    async def _watch_health(self, client: HttpClient) -> None:
        """Tell when the server makes no tokens any more. Cancelled: nothing changes."""
        heard_at = self._clock.now()
        while self._clock.now() - heard_at <= HEALTH_PATIENCE_S:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            if await is_healthy(client):
                heard_at = self._clock.now()
        self._break(f"{client.base_url} has not made a token for {HEALTH_PATIENCE_S:g} s (/health_generate)")

    async def _watch_metrics(self, client: HttpClient) -> None:
        """Read the load. Cancelled: nothing changes."""
        while True:
            try:
                reply = await client.request("GET", "/metrics", timeout_s=METRICS_TIMEOUT_S)
                if reply.status == 200:
                    self._books.read(read_metrics(reply.body.decode(errors="replace")), self._clock.now())
                    self._tell_load()
            except TokenmillError as error:
                _log.debug("metrics cannot be read", error=error.message)
            await asyncio.sleep(METRICS_INTERVAL_S)

    def _tell_load(self) -> None:
        if self._sink is not None:
            self._flush()
            self._sink(EngineOutput([], self.metrics(), []))

    def _break(self, why: str) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(why)
        for submission in tuple(self._open.values()):
            submission.fail(Failed(502, "engine_lost", why, retryable=True))

    def _info(self, facts: ServerFacts) -> EngineInfo:
        options = self._options
        limit = options.max_model_len or facts.max_model_len
        return EngineInfo(
            engine=f"sglang {facts.version}".strip(),
            model=options.model_name or facts.model,
            max_model_len=min(limit, facts.max_model_len),
            block_tokens=facts.block_tokens,
            kv_blocks=facts.kv_blocks,
            max_sequences=options.max_sequences * facts.ranks,
            vocab_size=facts.vocab_size,
            eos_token_ids=list(facts.eos_token_ids),
            transports=[] if options.role is Role.BOTH else [TRANSPORT],
            constraints=list(CONSTRAINTS),
            early_handoff=options.role is Role.PREFILL,
            fingerprint=f"sglang {facts.model} {options.dtype} {facts.kv_dtype}",
            alone=options.role is Role.BOTH,
        )


def _credentials(api_key: str) -> Headers:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
