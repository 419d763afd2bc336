"""The server's end of one connection: its streams, their queues and their credit.

It knows when an item may be sent, and nothing of what it means. All of it runs on the loop's thread.
"""
# A stream and its connection are two halves of one thing, and see each other's fields.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol

from tokenmill.errors import Overloaded, ProtocolError, TokenmillError, WorkerFailed, WorkerLost
from tokenmill.serve.fabric.frames import (
    Abort,
    CallT,
    Cancel,
    Credit,
    Data,
    Frame,
    GoAway,
    Hello,
    ItemT,
    Open,
)
from tokenmill.serve.fabric.limits import StreamLimits
from tokenmill.serve.fabric.link import FrameLink


@dataclass
class StreamCounts:
    """Running counts, shared by all connections of one server."""

    open_streams: int = 0
    open_streams_peak: int = 0
    streams_total: int = 0
    queued_items: int = 0
    queued_items_peak: int = 0
    items_out: int = 0
    overflows: int = 0
    protocol_errors: int = 0


class StreamHost(Protocol[CallT, ItemT]):
    """What a connection needs of its server."""

    limits: StreamLimits
    counts: StreamCounts
    closing: bool
    merge: Callable[[ItemT, ItemT], ItemT | None] | None
    on_open: Callable[[ServerStream[CallT, ItemT]], None]

    def refusal(self, connection: ServerConnection[CallT, ItemT]) -> str | None:
        """Take a connection in (None), or say why not."""
        ...

    def touched(self, connection: ServerConnection[CallT, ItemT]) -> None:
        """There is something to flush."""
        ...

    def stream_opened(self) -> None:
        """One stream more."""
        ...

    def stream_closed(self) -> None:
        """One stream less."""
        ...

    def lost(self, connection: ServerConnection[CallT, ItemT], error: TokenmillError) -> None:
        """The connection is gone."""
        ...


class ServerStream(Generic[CallT, ItemT]):
    """One call being answered.

    ``on_cancel`` is set by the handler and called once if the client cancels, its connection is lost, it
    falls too far behind, or the server closes; not after ``end``. ``closed``: no more items are taken.
    """

    __slots__ = ("_connection", "_credit", "_ended", "_queue", "call", "closed", "id", "on_cancel")

    def __init__(
        self, connection: ServerConnection[CallT, ItemT], stream_id: int, call: CallT, credit: int
    ) -> None:
        self.id = stream_id
        self.call = call
        self.on_cancel: Callable[[], None] | None = None
        self.closed = False
        self._connection = connection
        self._credit = credit
        self._queue: deque[ItemT] | None = None
        self._ended = False

    def send(self, item: ItemT) -> None:
        """Queue an item; no I/O. It leaves with the next flush, at the latest at the end of this iteration.

        Without credit it waits, merged with its neighbour where the server can merge, up to
        ``max_queued_items``. Beyond that the stream ends with an error and ``on_cancel`` is called: to wait
        would stall the engine's step and with it all other streams, to drop would lose tokens, to keep on
        queueing has no bound; so the one reader that does not keep up pays. Items for a cancelled stream
        are dropped. RuntimeError after ``end``.
        """
        connection = self._connection
        if self._credit and not self._queue and connection.writable:  # A closed stream has no credit.
            self._credit -= 1
            connection.batch.append((self.id, item))
            if not connection.touched:
                connection.touch()
        elif self._ended:
            raise RuntimeError(f"stream {self.id}: send after end")
        elif not self.closed:
            connection.queue(self, item)

    def end(self) -> None:
        """End the stream after what is queued. Does nothing where it is closed."""
        if not self.closed:
            self.closed = True
            self._ended = True
            if not self._queue:
                self._connection.finish(self)


class ServerConnection(Generic[CallT, ItemT]):
    """All streams of one client. ``batch`` and ``ended`` are what the next frame will carry.

    Bounds: ``batch`` by credit (streams times window), queues by ``max_queued_items`` a stream.
    """

    def __init__(self, host: StreamHost[CallT, ItemT]) -> None:
        self.batch: list[tuple[int, ItemT]] = []
        self.ended: list[int] = []
        self.touched = False
        self.writable = True
        self.peer = ""
        self.link: FrameLink[CallT, ItemT]
        """Set by the server right after making this."""
        self._host = host
        self._streams: dict[int, ServerStream[CallT, ItemT]] = {}
        self._waiting: dict[int, ServerStream[CallT, ItemT]] = {}
        self._window = 0
        self._last_id = 0

    def touch(self) -> None:
        """Ask for a flush."""
        if not self.touched:
            self.touched = True
            self._host.touched(self)

    def flush(self) -> None:
        """Write one frame with everything that was sent since the last one."""
        self.touched = False
        batch, ended = self.batch, self.ended
        if batch or ended:
            self.batch, self.ended = [], []
            self._host.counts.items_out += len(batch)
            self._write(batch, ended)
        self.link.flush()

    def queue(self, stream: ServerStream[CallT, ItemT], item: ItemT) -> None:
        """Keep an item that cannot be sent now."""
        if stream._queue is None:
            stream._queue = deque()
        waiting = stream._queue
        merge = self._host.merge
        merged = merge(waiting[-1], item) if merge is not None and waiting else None
        if merged is not None:
            waiting[-1] = merged
        elif len(waiting) < self._host.limits.max_queued_items:
            waiting.append(item)
            self._waiting[stream.id] = stream
            counts = self._host.counts
            counts.queued_items += 1
            counts.queued_items_peak = max(counts.queued_items_peak, counts.queued_items)
        else:
            self._host.counts.overflows += 1
            message = f"the reader is more than {len(waiting)} items behind (max_queued_items)"
            self.abort(stream, WorkerFailed(message))

    def finish(self, stream: ServerStream[CallT, ItemT]) -> None:
        """Say in the next frame that a stream has ended."""
        self.ended.append(stream.id)
        self._forget(stream)
        self.touch()

    def abort(self, stream: ServerStream[CallT, ItemT], error: TokenmillError) -> None:
        """End a stream with an error, without what it still had to say."""
        self._forget(stream)
        self.link.write(Abort(stream.id, error.code or WorkerFailed.code or "", error.message))
        self._notify(stream)

    def go_away(self, reason: str) -> None:
        """Ask the client to open no more streams."""
        self.link.write(GoAway(reason))

    # What the link says

    def link_made(self) -> None:
        """Turn the client away if there are too many."""
        refusal = self._host.refusal(self)
        if refusal is not None:
            self.go_away(refusal)
            self.link.close()

    def link_greeted(self, hello: Hello) -> None:
        """Learn how much the client takes."""
        self.peer = hello.name
        self._window = hello.window

    def writable_changed(self, *, writable: bool) -> None:
        """Hold items back, or let go what was held back."""
        self.writable = writable
        if writable:
            for stream in list(self._waiting.values()):
                self._drain(stream)

    def frame_received(self, frame: Frame[CallT, ItemT]) -> None:
        """Open, cancel or feed a stream. Streams that have ended here may be named for a while."""
        if isinstance(frame, Credit):
            stream = self._streams.get(frame.stream)
            if stream is not None:
                stream._credit += frame.n
                self._drain(stream)
        elif isinstance(frame, Open):
            self._open(frame)
        elif isinstance(frame, Cancel):
            stream = self._streams.get(frame.stream)
            if stream is not None:
                self._forget(stream)
                self._notify(stream)
        else:
            raise ProtocolError(f"the client sent {type(frame).__name__}, which only a server may")

    def link_lost(self, error: TokenmillError) -> None:
        """Cancel every stream."""
        self.batch, self.ended = [], []
        streams = list(self._streams.values())
        for stream in streams:
            self._forget(stream)
        for stream in streams:
            self._notify(stream)
        self._host.lost(self, error)

    # Inside

    def _open(self, frame: Open[CallT]) -> None:
        if frame.stream <= self._last_id:
            raise ProtocolError(f"stream {frame.stream} is not above the last one ({self._last_id})")
        self._last_id = frame.stream
        stream = ServerStream(self, frame.stream, frame.call, self._window)
        counts = self._host.counts
        if self._host.closing:
            self.link.write(Abort(stream.id, WorkerLost.code or "", "the server is closing"))
            return
        if len(self._streams) >= self._host.limits.max_streams:
            message = f"{len(self._streams)} streams are open on this connection (max_streams)"
            self.link.write(Abort(stream.id, Overloaded.code or "", message))
            return
        self._streams[stream.id] = stream
        counts.streams_total += 1
        counts.open_streams += 1
        counts.open_streams_peak = max(counts.open_streams_peak, counts.open_streams)
        self._host.stream_opened()
        try:
            self._host.on_open(stream)
        except TokenmillError as refusal:
            self._refuse(stream, refusal)
        except Exception as failure:  # noqa: BLE001  per-stream boundary: the others go on
            self._report(failure, "on_open raised")
            self._refuse(stream, WorkerFailed(f"the server could not open the stream: {failure!r}"))

    def _refuse(self, stream: ServerStream[CallT, ItemT], error: TokenmillError) -> None:
        """End a stream that its handler did not take; ``on_cancel`` has nobody to tell."""
        stream.on_cancel = None
        if stream.id in self._streams:
            self.abort(stream, error)

    def _drain(self, stream: ServerStream[CallT, ItemT]) -> None:
        """Send what waited, as far as credit goes."""
        waiting = stream._queue
        if not waiting or not self.writable:
            return
        moved = min(stream._credit, len(waiting))
        if moved:
            self.batch.extend((stream.id, waiting.popleft()) for _ in range(moved))
            stream._credit -= moved
            self._host.counts.queued_items -= moved
            self.touch()
        if not waiting:
            del self._waiting[stream.id]
            if stream._ended:
                self.finish(stream)

    def _forget(self, stream: ServerStream[CallT, ItemT]) -> None:
        stream.closed = True
        stream._credit = 0
        if stream._queue:
            self._host.counts.queued_items -= len(stream._queue)
        stream._queue = None
        self._waiting.pop(stream.id, None)
        if self._streams.pop(stream.id, None) is not None:
            self._host.counts.open_streams -= 1
            self._host.stream_closed()

    def _notify(self, stream: ServerStream[CallT, ItemT]) -> None:
        """Call ``on_cancel``, once, unless the handler had ended the stream."""
        on_cancel, stream.on_cancel = stream.on_cancel, None
        if on_cancel is not None and not stream._ended:
            try:
                on_cancel()
            except Exception as failure:  # noqa: BLE001  per-stream boundary: the others go on
                self._report(failure, "on_cancel raised")

    def _write(self, batch: list[tuple[int, ItemT]], ended: list[int]) -> None:
        try:
            self.link.write(Data(batch, ended))
        except ProtocolError as fault:
            self._write_parts(batch, ended, fault)

    def _write_parts(self, batch: list[tuple[int, ItemT]], ended: list[int], fault: ProtocolError) -> None:
        """Split what does not go into one frame; an item that goes into none ends its own stream."""
        if len(batch) > 1:
            half = len(batch) // 2
            self._write(batch[:half], [])
            self._write(batch[half:], ended)
            return
        bad = batch[0][0]
        self._report(fault, f"an item of stream {bad} cannot be sent")
        stream = self._streams.get(bad)
        if stream is not None:
            self.abort(stream, WorkerFailed(fault.message))
        else:
            self.link.write(Abort(bad, WorkerFailed.code or "", fault.message))
        self._write([], [stream_id for stream_id in ended if stream_id != bad])

    def _report(self, failure: Exception, message: str) -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"stream server: {message}", "exception": failure}
        )
