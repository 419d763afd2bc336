"""The shell of an engine that is a server of its own, launched or attached to, driven by token ids over HTTP.

Exists so that an engine's own module holds only what is that engine's. It must not know frontends, routing or
the desk. What came in one turn of the loop leaves in one output, so that the frontends get few frames.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import ClassVar, Protocol

import structlog

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Finished, HandoffLost, Item, Tokens
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.base import EngineInfo, Sink
from tokenmill.serve.engines.remote.books import LoadBooks
from tokenmill.serve.engines.remote.child import Child
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.options import ServerOptions
from tokenmill.serve.engines.remote.ranks import RankChoice
from tokenmill.serve.engines.remote.readiness import HealthCheck, wait_until_healthy
from tokenmill.serve.engines.remote.submission import Submission
from tokenmill.serve.engines.remote.turns import TurnOutput

_log = structlog.get_logger(__name__)

LOAD_INTERVAL_S = 0.2
"""Between two readings of a server's load, at least: a few milliseconds of its time each."""

LOAD_SHARE = 0.05
"""Most of the time that a reading may be under way: a server that answers late has other things to do."""

LOAD_LONGEST_S = 1.0
"""Between two readings, at most: load and step times would be too old."""

PATIENCE_S = 30.0
"""A server that was attached to and has not answered for so long is taken for broken."""

_STOPPED = Failed(503, "engine_stopped", "the engine is stopping", retryable=True)
_FULL = Failed(429, "queue_full", "too many requests wait for this engine", retryable=True)


class Launch(Protocol):
    """A server to start. ``environment``: beside the one that it inherits; ``url``: where it will answer."""

    @property
    def command(self) -> Sequence[str]:
        """Its words."""
        ...

    @property
    def environment(self) -> Mapping[str, str]:
        """What is set for it."""
        ...

    @property
    def url(self) -> str:
        """Where it will answer."""
        ...


class ServedEngine(ABC):
    """``Engine``. Open requests are bounded by ``max_waiting`` plus the server's ``max_sequences``."""

    name: ClassVar[str]
    health: ClassVar[HealthCheck] = HealthCheck()

    def __init__(self, options: ServerOptions, clock: Clock) -> None:
        self._server_options = options
        self._clock = clock
        self._books = LoadBooks()
        self._output = TurnOutput(self.metrics)
        self._open: dict[RequestId, Submission] = {}
        self._info: EngineInfo | None = None
        self._client: HttpClient | None = None
        self._child: Child | None = None
        self._taken = contextlib.AsyncExitStack()
        """What ``_plan`` and ``_learn`` took; released when the server is gone."""
        self._on_log_line: Callable[[str], None] | None = None
        self._choice: RankChoice | None = None
        """Of data-parallel ranks; None: the server deals requests out by itself."""
        self._failed: asyncio.Future[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # What an engine's module says ---------------------------------------------------------------------

    @abstractmethod
    def _plan(self) -> Launch:
        """Take ports and return what starts the server. Raises ConfigError, WorkerFailed."""

    @abstractmethod
    async def _learn(self, client: HttpClient) -> EngineInfo:
        """Ask a server that is up what it is, and begin to watch it. Raises ConfigError. Cancelled: ``stop``
        follows."""

    @abstractmethod
    def _submission(self, request: GenerateRequest, client: HttpClient) -> Submission:
        """Return a request in this server's words, not started."""

    def _refusal(self, request: GenerateRequest) -> Failed | None:  # noqa: ARG002  for those that refuse some
        """Return why the server must not get a request: it would take it without being able to."""
        return None

    # Engine -------------------------------------------------------------------------------------------

    async def start(self, sink: Sink) -> EngineInfo:
        """Launch or find the server and wait until it serves. Raises ConfigError. Cancelled: stopped."""
        options = self._server_options
        self._output.sink = sink
        self._failed = asyncio.get_running_loop().create_future()
        try:
            client = await self._reach()
            await wait_until_healthy(client, self._child, self._clock, options.start_timeout_s, self.health)
            self._info = info = await self._learn(client)
        except BaseException:
            await self.stop()
            raise
        if self._child is not None:
            self._keep(self._watch_child(self._child))
        return info

    def submit(self, request: GenerateRequest) -> None:
        """Send a request to the server."""
        assert self._client is not None
        assert self._info is not None
        request_id = request.request_id
        full = len(self._open) >= self._info.max_sequences + self._server_options.max_waiting
        refusal = _FULL if full else self._refusal(request)
        if refusal is not None:
            self._output.say(request_id, refusal)
            return
        submission = self._submission(request, self._client)
        self._open[request_id] = submission
        self._books.opened(request, self._choice.to_compute(request_id) if self._choice is not None else None)
        submission.start()

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; unknown ids are ignored."""
        submission = self._open.get(request_id)
        if submission is not None:
            submission.cancel()

    def metrics(self) -> StepMetrics:
        """The load as last known."""
        return self._books.metrics(self._info.kv_blocks if self._info is not None else 0)

    async def failure(self) -> str:
        """Wait until the server is gone. Cancelled: nothing changes."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """End requests, and the server if it is ours. Cancelled: call it again."""
        for submission in tuple(self._open.values()):
            submission.fail(_STOPPED)
        self._output.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._client is not None:
            await self._client.close()
        if self._child is not None:
            await self._child.stop()
        await self._taken.aclose()
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
        self._output.say(request_id, item)

    def progressed(self, request_id: RequestId) -> None:
        """A prompt is computed."""
        self._books.progressed(request_id)
        if self._choice is not None:
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
        _log.warning("handoff failed", request=request_id, reason=reason, why=why)
        self._output.say(request_id, HandoffLost(reason, why))

    # What an engine's module uses ---------------------------------------------------------------------

    def _keep(self, work: Coroutine[None, None, None]) -> None:
        """Run something until ``stop``."""
        self._tasks.append(asyncio.create_task(work, name=f"watch {self.name}"))

    async def _follow_load(self, read: Callable[[], Awaitable[EngineGauges | None]]) -> None:
        """Read the load again and again; ``read`` returns None where nothing new was told, and raises where
        the server does not answer. One that was attached to and is silent is taken for broken: of a launched
        one the kernel tells. Cancelled: nothing changes.
        """
        heard_at = self._clock.now()
        while True:
            asked_at = self._clock.now()
            try:
                gauges = await read()
                heard_at = self._clock.now()
                if gauges is not None:
                    self._books.read(gauges, heard_at)
                    self._output.tell_load()
            except TokenmillError as error:
                _log.debug("the load cannot be read", engine=self.name, error=error.message)
            if self._child is None and self._clock.now() - heard_at > PATIENCE_S:
                self._break(f"{self._server_options.attach} has not answered for {PATIENCE_S:g} s")
                return
            pause_s = (self._clock.now() - asked_at) / LOAD_SHARE
            await asyncio.sleep(min(max(pause_s, LOAD_INTERVAL_S), LOAD_LONGEST_S))

    def _break(self, why: str) -> None:
        """The server is gone."""
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(why)
        for submission in tuple(self._open.values()):
            submission.fail(Failed(502, "engine_lost", why, retryable=True))

    # Inside -------------------------------------------------------------------------------------------

    async def _reach(self) -> HttpClient:
        """Return a way to the server, which may not be up yet. Raises ConfigError, WorkerFailed."""
        options = self._server_options
        if options.attach:
            self._client = HttpClient(options.attach, api_key=options.api_key)
            return self._client
        plan = self._plan()
        name = f"{self.name} {options.role.value}"
        self._child = Child(name, plan.command, plan.environment, on_line=self._on_log_line)
        self._client = HttpClient(plan.url, api_key=options.api_key)
        await self._child.start()
        return self._client

    async def _watch_child(self, child: Child) -> None:
        """Tell when the process is gone. Cancelled: nothing changes."""
        self._break(await child.died())
