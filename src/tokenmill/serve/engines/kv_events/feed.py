"""Reads KV events from an engine's ZMQ sockets and tells them in our words.

Exists as the shell around ``order`` and ``translation``, one for each data-parallel rank. It must not know
who listens.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog
import zmq

from tokenmill.errors import ProtocolError
from tokenmill.protocol.kv_events import CacheCleared, KvEvent
from tokenmill.serve.engines.kv_events.order import MessageOrder, Verdict
from tokenmill.serve.engines.kv_events.translation import BlockTranslation
from tokenmill.serve.engines.kv_events.wire import EventBatch, read_batch

_log = structlog.get_logger(__name__)

REPLAY_TIMEOUT_S = 5.0
"""A replay comes from the server's memory; what has not come by then will not."""

JOIN_S = 0.25
"""A subscription on a host or in a data center stands in milliseconds."""

_END_OF_REPLAY = -1
_RECEIVE_LIMIT = 100_000
"""Messages that ZMQ holds for us while we are busy."""


class RankFeed:
    """One rank's events. ``start`` it, ``close`` it. ``on_events`` is called on the loop's thread."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        events: str,
        replay: str | None,
        on_events: Callable[[list[KvEvent]], None],
    ) -> None:
        self.resets = 0
        """How often messages were lost for good."""
        self._context = context
        self._events = events
        self._replay = replay
        self._on_events = on_events
        self._order = MessageOrder()
        self._translation = BlockTranslation()
        self._socket: zmq.Socket[bytes] | None = None
        self._replaying: asyncio.Task[None] | None = None

    def start(self, *, from_now: bool) -> None:
        """Subscribe. ``from_now`` False: what was said before is asked for, where it can be."""
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.RCVHWM, _RECEIVE_LIMIT)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.connect(self._events)
        self._socket = socket
        if from_now:
            self._order.expected = -1
        elif self._replay is not None:
            self._order.hold()
            self._replaying = asyncio.create_task(self._catch_up(), name="KV events so far")
        loop = asyncio.get_running_loop()
        loop.add_reader(socket.fileno(), self._readable)
        loop.call_soon(self._readable)

    async def close(self) -> None:
        """Read no more. Cancelled: call it again."""
        if self._replaying is not None:
            self._replaying.cancel()
            await asyncio.gather(self._replaying, return_exceptions=True)
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        """The descriptor tells changes, not states: everything there is must be read."""
        while self._socket is not None and self._socket.poll(0):
            try:
                batch = read_batch(self._socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            except ProtocolError as error:
                _log.warning("KV event message skipped", error=error.message)
                continue
            if self._order.expected < 0:
                self._order.expected = batch.sequence
            verdict, ready = self._order.take(batch)
            self._apply(ready)
            if verdict is Verdict.REPLAY:
                self._replaying = asyncio.create_task(self._ask_again(), name="KV event replay")

    def _apply(self, batches: list[EventBatch]) -> None:
        events = [event for batch in batches for event in batch.events]
        if events and (words := self._translation.apply(events)):
            self._on_events(words)

    async def _catch_up(self) -> None:
        """Fetch what was said before, once the subscription is sure to stand: a message that falls between
        the two would be missed until the next one shows the gap. Cancelled: nothing is applied."""
        await asyncio.sleep(JOIN_S)
        await self._ask_again()

    async def _ask_again(self) -> None:
        """Fetch what was missed. Cancelled: nothing is applied."""
        batches: list[EventBatch] = []
        if self._replay is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPLAY_TIMEOUT_S):
                    batches = await self._fetch(self._replay, self._order.expected)
        lost, ready = self._order.replayed(batches)
        if lost:
            self.resets += 1
            self._translation.clear()
            self._on_events([CacheCleared()])
            _log.warning("KV events were lost; the index of this engine starts anew", resets=self.resets)
        self._apply(ready)

    async def _fetch(self, endpoint: str, first: int) -> list[EventBatch]:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        batches: list[EventBatch] = []
        try:
            socket.connect(endpoint)
            socket.send_multipart((b"", first.to_bytes(8, "big")))
            while True:
                if not socket.poll(0):
                    await asyncio.sleep(0.002)
                    continue
                frames = socket.recv_multipart(zmq.NOBLOCK)
                if int.from_bytes(frames[-2], "big", signed=True) == _END_OF_REPLAY:
                    return batches
                batches.append(read_batch(frames))
        except ProtocolError as error:
            _log.warning("KV event replay cannot be read", error=error.message)
            return batches
        finally:
            socket.close()
