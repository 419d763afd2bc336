"""One worker's cache as its events tell it, carried to the router from a snapshot on.

Exists so that subscribing, gaps and subscribing anew stand in one place. It must not know what the router
does with events or what else is said on the connection.
"""

from __future__ import annotations

import asyncio

import structlog

from tokenmill.clock import Clock
from tokenmill.decide.router.router import Router
from tokenmill.errors import TokenmillError
from tokenmill.protocol.calls import Call, SubscribeKv
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.items import Item
from tokenmill.protocol.kv_events import KvEvents
from tokenmill.serve.fabric.streams import ClientStream, StreamConnection

_log = structlog.get_logger(__name__)

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 5.0
"""Between two subscriptions: a snapshot of a large cache costs the worker milliseconds."""

QUIET_S = 10.0
"""So long without trouble, and earlier trouble counts no more."""


class KvFeed:
    """``start`` it on a connection, ``stop`` it; it subscribes anew by itself until then."""

    def __init__(self, worker: WorkerId, router: Router, clock: Clock) -> None:
        self.resubscribed = 0
        """How often a gap, or the stream's end, made a new snapshot necessary."""
        self._worker = worker
        self._router = router
        self._clock = clock
        self._connection: StreamConnection[Call, Item] | None = None
        self._stream: ClientStream[Call, Item] | None = None
        self._fresh = True
        self._timer: asyncio.TimerHandle | None = None
        self._backoff_s = FIRST_BACKOFF_S
        self._trouble_at = float("-inf")

    @property
    def running(self) -> bool:
        """Between ``start`` and ``stop``."""
        return self._connection is not None

    def start(self, connection: StreamConnection[Call, Item]) -> None:
        """Subscribe. The router knows nothing of the worker's cache yet."""
        self._connection = connection
        self._subscribe()

    def stop(self) -> None:
        """Listen no more. Idempotent."""
        self._connection = None
        self._cancel()

    def _subscribe(self) -> None:
        assert self._connection is not None
        self._timer = None
        self._fresh = True
        self._stream = self._connection.open(SubscribeKv(), self._on_item, self._on_end)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def _on_item(self, item: Item) -> None:
        if not isinstance(item, KvEvents):
            return
        # The snapshot itself may have been dropped, which the router cannot see.
        complete = not self._fresh or item.first == 0
        self._fresh = False
        if not (complete and self._router.kv_changed(self._worker, item, self._clock.now())):
            self._resync("events were missed")

    def _on_end(self, error: TokenmillError | None) -> None:
        self._stream = None
        self._resync(error.message if error is not None else "the worker ended it")

    def _resync(self, why: str) -> None:
        """Subscribe anew, after a while that grows as long as it keeps happening."""
        self._cancel()
        if self._connection is None or self._connection.closed:
            return
        now = self._clock.now()
        if now - self._trouble_at > QUIET_S:
            self._backoff_s = FIRST_BACKOFF_S
        self._trouble_at = now
        self.resubscribed += 1
        _log.debug("KV events begin anew", worker=self._worker, reason=why, wait_s=self._backoff_s)
        self._timer = asyncio.get_running_loop().call_later(self._backoff_s, self._subscribe)
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
