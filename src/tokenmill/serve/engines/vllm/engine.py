"""vLLM behind the ``Engine`` seam: a real server, launched or attached to, driven by token ids over HTTP.

Exists as the shell around the plain objects of this folder. It must not know frontends, routing or the desk.
What came in one turn of the loop leaves in one output, so that the frontends get few frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog
import zmq

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, Item, Tokens
from tokenmill.protocol.kv_events import KvEvent
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.base import EngineInfo, EngineOutput, Sink
from tokenmill.serve.engines.kv_events.feed import RankFeed
from tokenmill.serve.engines.remote.books import LoadBooks
from tokenmill.serve.engines.remote.child import Child, free_ports
from tokenmill.serve.engines.remote.http_client import Headers, HttpClient
from tokenmill.serve.engines.vllm.launch import (
    Parallelism,
    VllmSettings,
    serve_arguments,
    serve_environment,
)
from tokenmill.serve.engines.vllm.metrics import read_metrics
from tokenmill.serve.engines.vllm.server import EventSource, ServerFacts, ask, launch_command, wait_until_up
from tokenmill.serve.engines.vllm.submission import Submission
from tokenmill.serve.engines.vllm.wire import TRANSPORT

_log = structlog.get_logger(__name__)

METRICS_INTERVAL_S = 0.2
"""Between two readings of the server's metrics: a few milliseconds of its time each."""

METRICS_PATIENCE_S = 30.0
"""A server that has not answered for so long is taken for broken."""

_STOPPED = Failed(503, "engine_stopped", "the engine is stopping", retryable=True)


class VllmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told of its engine. ``attach``: address of a running server; else one is launched."""

    model: str
    model_name: str
    role: Role
    attach: str = ""
    api_key: str = ""
    engine_python: str = ""
    engine_command: str = ""
    engine_args: Mapping[str, str] = {}
    engine_env: Mapping[str, str] = {}
    parallel: Parallelism = Parallelism()
    run_dir: str = ""
    start_timeout_s: float = 1800.0
    block_tokens: int = 0
    kv_blocks: int = 0
    kv_memory_mb: int = 0
    max_model_len: int = 0
    max_sequences: int = 256
    max_waiting: int = 1024
    token_budget: int = 0
    dtype: str = "auto"
    prefix_cache: bool = True


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
        self._sink: Sink | None = None
        self._facts: ServerFacts | None = None
        self._client: HttpClient | None = None
        self._child: Child | None = None
        self._failed: asyncio.Future[str] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._feeds: list[RankFeed] = []
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
        self._read_events(facts.sources)
        self._watch = asyncio.create_task(self._watch_server(), name="watch vllm")
        return self._info(facts)

    def submit(self, request: GenerateRequest) -> None:
        """Send a request to the server."""
        assert self._client is not None
        assert self._facts is not None
        request_id = request.request_id
        options = self._options
        if len(self._open) >= options.max_sequences + options.max_waiting:
            failure = Failed(429, "queue_full", "too many requests wait for this engine", retryable=True)
            self._say(request_id, failure)
            return
        submission = Submission(request, self._client, self._facts.model, self, self._rank_headers())
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
        self._say(request_id, item)

    def progressed(self, request_id: RequestId) -> None:
        """A prompt is computed."""
        self._books.progressed(request_id)

    def handed_in(self) -> None:
        """A cache made elsewhere was taken over."""
        self._books.handoffs_in += 1

    def handed_out(self) -> None:
        """A cache was offered."""
        self._books.handoffs_out += 1

    def handoff_failed(self, request_id: RequestId, why: str) -> None:
        """A cache made elsewhere did not come."""
        self._books.handoffs_failed[why[:60]] += 1
        _log.warning("handoff failed; the prompt is computed here", request=request_id, why=why)

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

    def _on_events(self, events: list[KvEvent]) -> None:
        self._pending_events += events
        self._flush_soon()

    async def _launch(self) -> tuple[EventSource, ...]:
        options = self._options
        ranks = options.parallel.dp
        port, events, replay, side = free_ports(4, neighbours=max(1, ranks * options.parallel.tp))
        settings = VllmSettings(
            model=options.model,
            served_name=options.model_name,
            role=options.role,
            port=port,
            events=self._endpoint("events", events),
            replay=self._endpoint("replay", replay),
            side_channel_port=side,
            parallel=options.parallel,
            block_tokens=options.block_tokens,
            kv_blocks=options.kv_blocks,
            kv_memory_mb=options.kv_memory_mb,
            max_model_len=options.max_model_len,
            max_sequences=options.max_sequences,
            token_budget=options.token_budget,
            dtype=options.dtype,
            prefix_cache=options.prefix_cache,
            arguments=options.engine_args,
        )
        command = [
            *launch_command(options.engine_python, options.engine_command),
            *serve_arguments(settings),
        ]
        environment = {**serve_environment(settings), **options.engine_env}
        self._child = Child(f"vllm {options.role.value}", command, environment)
        self._client = HttpClient(f"http://127.0.0.1:{port}", headers=_credentials(options.api_key))
        await self._child.start()
        if not options.prefix_cache:
            return ()
        if ranks == 1:
            return (EventSource(settings.events, settings.replay),)
        return tuple(
            EventSource(f"tcp://127.0.0.1:{events + rank}", f"tcp://127.0.0.1:{replay + rank}")
            for rank in range(ranks)
        )

    def _endpoint(self, name: str, port: int) -> str:
        """A Unix socket in the worker's own folder where one will do: nobody else can read or speak there."""
        if self._options.parallel.dp == 1 and self._options.run_dir:
            return f"ipc://{Path(self._options.run_dir) / f'vllm-{name}-{port}.sock'}"
        return f"tcp://*:{port}"

    def _read_events(self, sources: tuple[EventSource, ...]) -> None:
        if not sources:
            return
        self._context = zmq.Context()
        for source in sources:
            feed = RankFeed(self._context, source.events, source.replay, self._on_events)
            feed.start(from_now=False)
            self._feeds.append(feed)

    def _rank_headers(self) -> Headers:
        return ()

    async def _watch_server(self) -> None:
        """Read the metrics, and tell when the server is gone. Cancelled: nothing changes."""
        assert self._client is not None
        died = asyncio.ensure_future(self._child.died()) if self._child is not None else None
        heard_at = self._clock.now()
        try:
            while died is None or not died.done():
                try:
                    reply = await self._client.request("GET", "/metrics", timeout_s=METRICS_PATIENCE_S)
                    if reply.status == 200:
                        self._books.read(read_metrics(reply.body.decode(errors="replace")))
                        heard_at = self._clock.now()
                        self._tell_load()
                except TokenmillError as error:
                    _log.debug("metrics cannot be read", error=error.message)
                if died is None and self._clock.now() - heard_at > METRICS_PATIENCE_S:
                    self._break(f"{self._client.base_url} has not answered for {METRICS_PATIENCE_S:g} s")
                    return
                await _wait(died, METRICS_INTERVAL_S)
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
            max_sequences=options.max_sequences,
            vocab_size=0,
            eos_token_ids=[],
            transports=[TRANSPORT],
            early_handoff=False,
            fingerprint=f"vllm {facts.version} {facts.root} {options.dtype}",
        )


async def _wait(died: asyncio.Future[str] | None, timeout_s: float) -> None:
    if died is None:
        await asyncio.sleep(timeout_s)
    else:
        await asyncio.wait((died,), timeout=timeout_s)


def _credentials(api_key: str) -> Headers:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
