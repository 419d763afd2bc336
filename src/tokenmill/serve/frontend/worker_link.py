"""One worker as this frontend sees it: its card, its connection, what the router is told of it.

Exists so that connecting, reconnecting and telling the router stand in one place for each worker. It must not
know how workers are chosen or what a request means.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Protocol

import structlog

from tokenmill.clock import Clock
from tokenmill.decide.router.router import Router
from tokenmill.errors import TokenmillError, WorkerLost, WorkerStalled
from tokenmill.protocol.calls import Call, Generate, Subscribe
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Item, Load
from tokenmill.protocol.metrics import Circuit, StepMetrics
from tokenmill.serve.fabric.limits import StreamLimits
from tokenmill.serve.fabric.streams import StreamConnection
from tokenmill.serve.frontend.kv_feed import KvFeed
from tokenmill.serve.frontend.linked_stream import LinkedStream, LossWatch, OnEnd, OnItem
from tokenmill.serve.frontend.stall import StallLimits, StepWatch

_log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0
_CONNECT_TIMEOUT_S = 5.0


class LinkOwner(Protocol):
    """Who is told of changes; from inside the connection's callbacks, so that it must not block."""

    def usable_changed(self) -> None:
        """A worker became usable or ceased to be."""
        ...

    def load_changed(self) -> None:
        """A worker told its load, or a stream to it is over."""
        ...

    def routed(self) -> None:
        """The router was told of a stream that began or ended."""
        ...


class WorkerLink:
    """The router knows the worker exactly as long as it is usable."""

    def __init__(
        self, card: WorkerCard, router: Router, clock: Clock, owner: LinkOwner, stall: StallLimits
    ) -> None:
        self.card = card
        self.metrics = StepMetrics(kv_blocks_total=card.kv_blocks)
        """What the worker last told; nothing it is busy with where it is lost."""
        self.open_streams = 0
        """Streams of this frontend that are open to the worker."""
        self.draining = False
        self.retired = False
        """Its card is gone: nothing new goes there, and when what it has is done the link ends."""
        self.kv = KvFeed(card.worker_id, router, clock)
        self._router = router
        self._clock = clock
        self._owner = owner
        self._limits = StreamLimits(silence_s=stall.silence_s)
        self._steps = StepWatch(stall.step_s)
        self._known: WorkerCard | None = None  # as the router has it
        self._watches: dict[LossWatch, None] = {}  # bounded by the sequences under way
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
            and not self._steps.stuck
            and self.metrics.circuit is not Circuit.OPEN
            and self._connection is not None
            and not self._connection.going_away
        )

    @property
    def state(self) -> str:
        """For people: the card's state, "lost" without a connection, "stalled" without steps, "broken" while
        it lets nobody through to a server that keeps failing."""
        if not self.connected:
            return "lost"
        if self._steps.stuck:
            return "stalled"
        if self.metrics.circuit is Circuit.OPEN:
            return "broken"
        return "draining" if self.draining or self.retired else self.card.state.value

    def update(self, card: WorkerCard) -> None:
        """The worker told something new of itself."""
        self.card = card
        self.retired = False
        self._settle()

    def retire(self) -> None:
        """The worker's card is gone. What it is doing may end there."""
        self.retired = True
        self._settle()
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
                    limits=self._limits,
                    name="frontend",
                    peer=f"worker {self.card.worker_id}",
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
            self._settle()
            self._check_idle()
            await self._over.wait()
        finally:
            self._connection = None
            self.metrics = StepMetrics(kv_blocks_total=self.card.kv_blocks)
            self._settle()
            self._tell_watches(WorkerLost("the connection was closed by this side"))
            await connection.close()

    def _settle(self) -> None:
        """Tell the router, and who owns this, where the worker has become usable or ceased to be."""
        usable = self.usable
        if usable and self._known is not self.card:
            self._known = self.card
            self._router.worker_ready(self.card)
            if self._router.wants_kv and not self.kv.running and self._connection is not None:
                self.kv.start(self._connection)
        elif not usable and self._known is not None:
            self._known = None
            self.kv.stop()
            self._router.worker_gone(self.card.worker_id)
        self._owner.usable_changed()

    # Streams -------------------------------------------------------------------------------------------

    def open(
        self, request: GenerateRequest, on_item: OnItem, on_end: OnEnd, *, cached_tokens: int = 0
    ) -> LinkedStream:
        """Open a stream to the worker and count it. ``on_end`` is called once unless it is cancelled.

        ``cached_tokens``: those of the prompt that the worker need not compute, as predicted.
        """
        tokens = request.tokens
        prefill_tokens = 0 if request.role is Role.DECODE else max(1, tokens - cached_tokens)
        if request.text is not None:
            prefill_tokens = 1  # read by a server whose queue is not ours to keep short
        request_id = request.request_id
        self.open_streams += 1
        self._router.sent(self.card.worker_id, request_id, prefill_tokens, self._clock.now(), tokens)
        self._owner.routed()
        linked = LinkedStream(partial(self._stream_ended, request_id), on_end)
        if self._connection is None:
            lost = WorkerLost(f"worker {self.card.worker_id} is not connected")
            asyncio.get_running_loop().call_soon(linked.ended, lost)
        else:
            linked.stream = self._connection.open(Generate(request), on_item, linked.ended)
        return linked

    def watch(self, on_end: OnEnd) -> LossWatch:
        """Call ``on_end`` once, with the reason, when the connection is lost; no stream is opened."""
        watch = LossWatch(self._watch_over, on_end)
        self._watches[watch] = None
        if not self.connected:
            lost = WorkerLost(f"worker {self.card.worker_id} is not connected")
            asyncio.get_running_loop().call_soon(watch.ended, lost)
        return watch

    def _stream_ended(self, request_id: RequestId) -> None:
        """A stream is over, one way or the other."""
        self.open_streams -= 1
        self._router.ended(self.card.worker_id, request_id)
        if self.retired:
            self._check_idle()
        self._owner.routed()
        self._owner.load_changed()

    def _watch_over(self, watch: LossWatch) -> None:
        self._watches.pop(watch, None)
        self._check_idle()

    def _tell_watches(self, error: TokenmillError) -> None:
        kind = type(error) if isinstance(error, WorkerLost) else WorkerLost
        for watch in tuple(self._watches):
            watch.ended(kind(f"worker {self.card.worker_id}: {error.message}"))

    def _check_idle(self) -> None:
        if self.retired and self.open_streams == 0 and not self._watches:
            self._over.set()

    # What the connection says --------------------------------------------------------------------------

    def _on_load(self, item: Item) -> None:
        if not isinstance(item, Load):
            return
        tripped = (item.metrics.circuit is Circuit.OPEN) != (self.metrics.circuit is Circuit.OPEN)
        self.metrics = item.metrics
        now = self._clock.now()
        self._router.load_reported(self.card.worker_id, item.metrics, now)
        was_stuck = self._steps.stuck
        self._steps.reported(item.metrics, now)
        stuck = self._steps.stuck
        if stuck and not was_stuck and self._connection is not None:
            self._connection.give_up(WorkerStalled("its engine makes no steps"))
        elif item.draining != self.draining or stuck != was_stuck or tripped:
            self.draining = item.draining
            self._settle()
        else:
            self._owner.load_changed()

    def _on_subscription_end(self, error: TokenmillError | None) -> None:
        # Without reports the load is what was sent and not yet ended: coarse, but never wrong for long.
        reason = error.message if error is not None else None
        _log.debug("load reports ended", worker=self.card.worker_id, error=reason)

    def _on_lost(self, error: TokenmillError) -> None:
        if not self.retired and not self.draining and self.card.state is WorkerState.READY:
            _log.warning("worker lost", worker=self.card.worker_id, error=error.message)
        self._over.set()
        self._tell_watches(error)
