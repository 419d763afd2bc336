"""vLLM behind the ``Engine`` seam: a real server, launched or attached to, driven by token ids over HTTP.

Exists as the shell around the plain objects of this folder. It must not know frontends, routing or the desk.
What came in one turn of the loop leaves in one output, so that the frontends get few frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial

import structlog
import zmq

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.handoffs import VLLM_TRANSPORTS
from tokenmill.protocol.ids import RequestId
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
from tokenmill.serve.engines.vllm.launch import kv_lease_s
from tokenmill.serve.engines.vllm.losses import LogClues
from tokenmill.serve.engines.vllm.metrics import read_metrics
from tokenmill.serve.engines.vllm.plan import Ports, VllmOptions, plan_launch, ranks_of
from tokenmill.serve.engines.vllm.server import EventSource, ServerFacts, ask, wait_until_up
from tokenmill.serve.engines.vllm.submission import Submission
from tokenmill.serve.engines.vllm.wire import CONSTRAINTS

_log = structlog.get_logger(__name__)

METRICS_INTERVAL_S = 0.2
"""Between two readings of the server's metrics, at least: a few milliseconds of its time each."""

METRICS_SHARE = 0.05
"""Most of the time that a reading may be under way: a server that answers late has other things to do."""

METRICS_LONGEST_S = 0.5
"""Between two readings, at most: load and step times would be too old."""

METRICS_PATIENCE_S = 30.0
"""A server that has not answered for so long is taken for broken."""

_STOPPED = Failed(503, "engine_stopped", "the engine is stopping", retryable=True)


class VllmEngine:
    """``Engine`` for vLLM. Open requests are bounded by ``max_waiting`` plus ``max_sequences``."""

    def __init__(self, options: VllmOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._books = LoadBooks()
        self._open: dict[RequestId, Submission] = {}
        self._pending: list[tuple[RequestId, Item]] = []
        self._pending_events: list[KvEvent] = []
        self._flush_due = False
        self._lease_s = (
            options.lease_s if options.kv_connector == "tokenmill" else kv_lease_s(options.engine_args)
        )
        self._clues = LogClues()
        self._sink: Sink | None = None
        self._facts: ServerFacts | None = None
        self._client: HttpClient | None = None
        self._child: Child | None = None
        self._ports: ReservedPorts | None = None
        self._failed: asyncio.Future[str] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._feeds: list[RankFeed] = []
        self._caches = RankCaches(1)
        self._choice = RankChoice(self._caches, 1)
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
            self._facts = facts = await ask(client, options.model_name, sources)
        except BaseException:
            await self.stop()
            raise
        self._caches = RankCaches(facts.ranks)
        self._choice = RankChoice(self._caches, facts.block_tokens)
        self._read_events(facts.sources)
        self._watch = asyncio.create_task(self._watch_server(), name="watch vllm")
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
        facts = self._facts
        submission = Submission(
            request,
            self._client,
            facts.model,
            self,
            self._rank_headers(request),
            clock=self._clock,
            lease_s=self._lease_s,
            transport=VLLM_TRANSPORTS[options.kv_connector],
            token_route=facts.token_route,
        )
        self._open[request_id] = submission
        self._books.opened(request, self._choice.to_compute(request_id))
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
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
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
            self._choice.closed(request_id)
        self._say(request_id, item)

    def progressed(self, request_id: RequestId) -> None:
        """A prompt is computed."""
        self._books.progressed(request_id)
        self._choice.progressed(request_id)

    def handed_in(self) -> None:
        """A cache made elsewhere was taken over."""
        self._books.handoffs_in += 1

    def handed_out(self) -> None:
        """A cache was offered."""
        self._books.handoffs_out += 1

    def handoff_failed(self, request_id: RequestId, reason: str, why: str) -> None:
        """A cache made elsewhere did not come."""
        self._books.handoffs_failed[reason] += 1
        _log.warning("handoff failed; computing here", request=request_id, reason=reason, why=why)
        self._say(request_id, HandoffLost(reason, why))

    def clue(self, request_id: RequestId) -> str:
        """What the launched server's log says about a failed transfer."""
        return self._clues.of(request_id)

    # Inside -------------------------------------------------------------------------------------------

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
        self._ports = ReservedPorts(4, neighbours=ranks_of(options.parallel))
        plan = plan_launch(options, Ports(*self._ports.ports))
        self._child = Child(
            f"vllm {options.role.value}", plan.command, plan.environment, on_line=self._clues.take
        )
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

    def _rank_headers(self, request: GenerateRequest) -> Headers:
        rank = self._choice.choose(request)
        return (("x-data-parallel-rank", str(rank)),) if self._choice.ranks > 1 else ()

    async def _watch_server(self) -> None:
        """Read the metrics, and tell when the server is gone. Cancelled: nothing changes."""
        assert self._client is not None
        died = asyncio.ensure_future(self._child.died()) if self._child is not None else None
        heard_at = self._clock.now()
        try:
            while died is None or not died.done():
                asked_at = self._clock.now()
                try:
                    reply = await self._client.request("GET", "/metrics", timeout_s=METRICS_PATIENCE_S)
                    if reply.status == 200:
                        self._books.read(read_metrics(reply.body.decode(errors="replace")), self._clock.now())
                        heard_at = self._clock.now()
                        self._tell_load()
                except TokenmillError as error:
                    _log.debug("metrics cannot be read", error=error.message)
                if died is None and self._clock.now() - heard_at > METRICS_PATIENCE_S:
                    self._break(f"{self._client.base_url} has not answered for {METRICS_PATIENCE_S:g} s")
                    return
                pause_s = (self._clock.now() - asked_at) / METRICS_SHARE
                await _wait(died, min(max(pause_s, METRICS_INTERVAL_S), METRICS_LONGEST_S))
            self._break(died.result())
        finally:
            if died is not None:
                died.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await died

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
            engine=f"vllm {facts.version}".strip(),
            model=options.model_name or facts.model,
            max_model_len=min(limit, facts.max_model_len),
            block_tokens=facts.block_tokens,
            kv_blocks=facts.kv_blocks,
            max_sequences=options.max_sequences * facts.ranks,
            vocab_size=0,
            eos_token_ids=[],
            transports=[VLLM_TRANSPORTS[options.kv_connector]],
            early_handoff=False,
            constraints=list(CONSTRAINTS),
            fingerprint=f"vllm {facts.version} {facts.root} {options.dtype}",
        )


async def _wait(died: asyncio.Future[str] | None, timeout_s: float) -> None:
    if died is None:
        await asyncio.sleep(timeout_s)
    else:
        await asyncio.wait((died,), timeout=timeout_s)


def _credentials(api_key: str) -> Headers:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
