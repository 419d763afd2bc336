"""One worker as this frontend sees it: its card, its connection, its load.

Exists so that connecting, reconnecting and counting what was sent stand in one place for each worker. It must
not know how workers are chosen or what a request means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from tokenmill.clock import Clock
from tokenmill.decide.router.load import WorkerLoad
from tokenmill.decide.router.types import Candidate
from tokenmill.errors import TokenmillError, WorkerLost
from tokenmill.protocol.calls import Call, Generate, Subscribe
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import Item, Load
from tokenmill.serve.fabric.streams import ClientStream, StreamConnection

_log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0
_CONNECT_TIMEOUT_S = 5.0

OnItem = Callable[[Item], None]
OnEnd = Callable[[TokenmillError | None], None]


class WorkerLink:
    """``on_change`` is called when the worker becomes usable or ceases to be."""

    def __init__(self, card: WorkerCard, clock: Clock, on_change: Callable[[], None]) -> None:
        self.card = card
        self.load = WorkerLoad()
        self.candidate = Candidate(card, self.load)
        self.draining = False
        self.retired = False
        """Its card is gone: nothing new goes there, and when what it has is done the link ends."""
        self._clock = clock
        self._on_change = on_change
        self._connection: StreamConnection[Call, Item] | None = None
        self._over = asyncio.Event()  # the connection is lost, or no longer needed

    @property
    def connected(self) -> bool:
        """There is a connection."""
        return self._connection is not None and not self._connection.closed

    @property
    def usable(self) -> bool:
        """New requests may go there."""
        return (
            self.connected
            and self.card.state is WorkerState.READY
            and not self.draining
            and not self.retired
            and self._connection is not None
            and not self._connection.going_away
        )

    @property
    def state(self) -> str:
        """For people: the card's state, or "lost" where there is no connection."""
        if not self.connected:
            return "lost"
        return "draining" if self.draining or self.retired else self.card.state.value

    def update(self, card: WorkerCard) -> None:
        """The worker told something new of itself."""
        self.card = card
        self.candidate = Candidate(card, self.load)
        self.retired = False
        self._on_change()

    def retire(self) -> None:
        """The worker's card is gone. What it is doing may end there."""
        self.retired = True
        self._on_change()
        self._check_idle()

    async def run(self) -> None:
        """Stay connected until retired and idle. Cancelled: the connection is closed."""
        backoff_s = _FIRST_BACKOFF_S
        while not (self.retired and not self.connected):
            self._over.clear()
            try:
                connection = await StreamConnection[Call, Item].connect(
                    self.card.address,
                    Call,
                    Item,
                    on_lost=self._on_lost,
                    connect_timeout_s=_CONNECT_TIMEOUT_S,
                    name="frontend",
                )
            except TokenmillError as error:
                _log.debug("cannot connect", worker=self.card.worker_id, error=error.message)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)
                continue
            backoff_s = _FIRST_BACKOFF_S
            await self._stay(connection)

    async def _stay(self, connection: StreamConnection[Call, Item]) -> None:
        self._connection = connection
        self.draining = False
        try:
            connection.open(Subscribe(), self._on_load, self._on_subscription_end)
            self._on_change()
            self._check_idle()
            await self._over.wait()
        finally:
            self._connection = None
            self.load.lost()
            self._on_change()
            await connection.close()

    def open(self, request: GenerateRequest, on_item: OnItem, on_end: OnEnd) -> LinkedStream:
        """Open a stream to the worker and count it. ``on_end`` is called once unless it is cancelled."""
        fresh = request.role is not Role.DECODE
        prefill_tokens = len(request.prompt) + len(request.output) if fresh else 0
        self.load.sent(request.request_id, prefill_tokens, self._clock.now())
        linked = LinkedStream(self, request.request_id, on_end)
        if self._connection is None:
            lost = WorkerLost(f"worker {self.card.worker_id} is not connected")
            asyncio.get_running_loop().call_soon(linked.ended, lost)
        else:
            linked.stream = self._connection.open(Generate(request), on_item, linked.ended)
        return linked

    def stream_ended(self, request_id: RequestId) -> None:
        """A stream is over, one way or the other."""
        self.load.ended(request_id)
        if self.retired:
            self._check_idle()

    def _check_idle(self) -> None:
        if self.retired and self.load.open_streams == 0:
            self._over.set()

    def _on_load(self, item: Item) -> None:
        if not isinstance(item, Load):
            return
        self.load.reported(item.metrics, self._clock.now())
        if item.draining != self.draining:
            self.draining = item.draining
            self._on_change()

    def _on_subscription_end(self, error: TokenmillError | None) -> None:
        # Without reports the load is what was sent and not yet ended: coarse, but never wrong for long.
        reason = error.message if error is not None else None
        _log.debug("load reports ended", worker=self.card.worker_id, error=reason)

    def _on_lost(self, error: TokenmillError) -> None:
        if not self.retired and not self.draining and self.card.state is WorkerState.READY:
            _log.warning("worker lost", worker=self.card.worker_id, error=error.message)
        self._over.set()


class LinkedStream:
    """A stream that is counted in its worker's load until it ends or is cancelled."""

    __slots__ = ("_cancelled", "_link", "_on_end", "_request_id", "stream")

    def __init__(self, link: WorkerLink, request_id: RequestId, on_end: OnEnd) -> None:
        self.stream: ClientStream[Call, Item] | None = None
        self._link = link
        self._request_id = request_id
        self._on_end = on_end
        self._cancelled = False

    def ended(self, error: TokenmillError | None) -> None:
        """The connection: the stream is over."""
        if self._cancelled:
            return
        self._link.stream_ended(self._request_id)
        self._on_end(error)

    def cancel(self) -> None:
        """Stop it; no callback is called from now on."""
        if self._cancelled:
            return
        self._cancelled = True
        if self.stream is not None:
            self.stream.cancel()
        self._link.stream_ended(self._request_id)

    def pause(self) -> None:
        """Ask for no more until ``resume``."""
        if self.stream is not None:
            self.stream.pause()

    def resume(self) -> None:
        """Take more again."""
        if self.stream is not None:
            self.stream.resume()


class LostStream:
    """Stands for a stream to a worker that is no longer there: it ends at once."""

    def __init__(self, worker: WorkerId, on_end: OnEnd) -> None:
        lost = WorkerLost(f"worker {worker} is gone")
        self._handle = asyncio.get_running_loop().call_soon(on_end, lost)

    def cancel(self) -> None:
        """No callback is called from now on."""
        self._handle.cancel()

    def pause(self) -> None:
        """Nothing comes anyway."""

    def resume(self) -> None:
        """Nothing comes anyway."""
