"""The client's end of streams: opens them, hears items, gives credit, cancels.

It does not know what a call or an item means, nor which server is a good choice.
"""
# A stream and its connection are two halves of one thing, and see each other's fields.
# ruff: noqa: SLF001

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self

from tokenmill.errors import (
    DeadlineExceeded,
    Overloaded,
    ProtocolError,
    TokenmillError,
    WorkerFailed,
    WorkerLost,
    WorkerStalled,
)
from tokenmill.serve.fabric.address import parse_address
from tokenmill.serve.fabric.codec import FrameCodec, TypeForm
from tokenmill.serve.fabric.frames import (
    VERSION,
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
from tokenmill.serve.fabric.link import FrameLink, Traffic
from tokenmill.serve.fabric.sockets import connect

CLOSE_TIMEOUT_S = 1.0
RETRY_AFTER_S = 1.0

OnEnd = Callable[[TokenmillError | None], None]


@dataclass(frozen=True)
class ConnectionStatistics:
    """A connection at one instant. Bytes and frames are totals since it was made."""

    open_streams: int
    open_streams_peak: int
    paused_streams: int
    streams_total: int
    items_in: int
    frames_in: int
    frames_out: int
    bytes_in: int
    bytes_out: int
    backlog_bytes: int


class ClientStream(Generic[CallT, ItemT]):
    """One call under way."""

    __slots__ = ("_connection", "_on_end", "_on_item", "_paused", "_taken", "closed", "id")

    def __init__(
        self,
        connection: StreamConnection[CallT, ItemT],
        stream_id: int,
        on_item: Callable[[ItemT], None],
        on_end: OnEnd,
    ) -> None:
        self.id = stream_id
        self.closed = False
        self._connection = connection
        self._on_item = on_item
        self._on_end = on_end
        self._taken = 0
        self._paused = False

    def cancel(self) -> None:
        """Stop it: no callback is called from now on. Does nothing where it has ended."""
        if not self.closed:
            self._connection._cancel(self)

    def _forget_callbacks(self) -> OnEnd:
        """Let go of who listens, and return who hears the end: they hold this stream, and a request would be
        freed by the garbage collector only, much later and all at once."""
        on_end = self._on_end
        self._on_item = self._on_end = _nobody
        return on_end

    def pause(self) -> None:
        """Give no more credit: after at most one window more the server stops sending."""
        self._paused = True

    def resume(self) -> None:
        """Give the credit that ``pause`` kept back."""
        self._paused = False
        if self._taken and not self.closed:
            self._connection._grant(self)


class StreamConnection(Generic[CallT, ItemT]):
    """Many streams over one connection. Callbacks run inside the transport's callback: no task, no queue.

    They must not block. One that raises ends its own stream (``WorkerFailed``) and is reported through the
    loop's exception handler.
    """

    def __init__(
        self,
        address: str,
        codec: FrameCodec[CallT, ItemT],
        on_lost: Callable[[TokenmillError], None] | None,
        limits: StreamLimits,
        name: str,
        peer: str,
    ) -> None:
        """Use ``connect``."""
        self.address = address
        self._peer = peer or address
        self.closed = False
        self.going_away = False
        """The server asked to open no more streams here."""
        self._limits = limits
        self._wanted_on_lost = on_lost
        self._on_lost: Callable[[TokenmillError], None] | None = None
        self._half = (limits.window + 1) // 2
        self._loop = asyncio.get_running_loop()
        self._greeted: asyncio.Future[Hello] = self._loop.create_future()
        self._streams: dict[int, ClientStream[CallT, ItemT]] = {}
        self._last_id = 0
        self._peak = 0
        self._items_in = 0
        self._traffic = Traffic()
        hello = Hello(VERSION, name, limits.window)
        self._link = FrameLink(self, codec, limits, hello, self._traffic)

    @classmethod
    async def connect(
        cls,
        address: str,
        call_type: TypeForm,
        item_type: TypeForm,
        *,
        on_lost: Callable[[TokenmillError], None] | None = None,
        connect_timeout_s: float = 5.0,
        limits: StreamLimits | None = None,
        name: str = "",
        peer: str = "",
    ) -> Self:
        """Connect and shake hands.

        ``name``: who we are to the peer; ``peer``: what errors call it, its address if empty.
        ``on_lost`` is called once if the connection breaks later, after every open stream's ``on_end``;
        not after ``close``. Raises ConfigError (bad address), WorkerLost (refused, closed), ProtocolError
        (no tokenmill, other version), DeadlineExceeded. Cancelled: no connection is left.
        """
        limits = limits or StreamLimits()
        target = parse_address(address)
        codec = FrameCodec[CallT, ItemT](call_type, item_type, limits.max_frame_bytes)
        connection = cls(address, codec, on_lost, limits, name, peer)
        try:
            async with asyncio.timeout(connect_timeout_s):
                await connect(lambda: connection._link, target)
                await connection._greeted
        except TimeoutError as error:
            raise DeadlineExceeded(f"{address} did not answer within {connect_timeout_s} s") from error
        except OSError as error:
            raise WorkerLost(f"cannot connect to {address}: {error}") from error
        finally:
            connection._connected()
        return connection

    def open(
        self, call: CallT, on_item: Callable[[ItemT], None], on_end: OnEnd
    ) -> ClientStream[CallT, ItemT]:
        """Begin a stream. Never raises for the plant's reasons and never blocks.

        ``on_end`` gets None after the server's last item, or the error, exactly once unless cancelled:
        ``WorkerLost``, ``WorkerFailed`` or ``Overloaded``. Where the stream cannot be opened at all,
        ``on_end`` is called in the loop's next iteration. Streams opened in one iteration leave in one write.
        """
        self._last_id += 1
        stream = ClientStream(self, self._last_id, on_item, on_end)
        error = self._refusal()
        if error is None:
            try:
                self._link.write(Open(stream.id, call))
            except ProtocolError as fault:
                error = WorkerFailed(fault.message)
        self._streams[stream.id] = stream
        self._peak = max(self._peak, len(self._streams))
        if error is not None or self.closed:
            lost = error or WorkerLost(f"the connection to {self._peer} is lost")
            self._loop.call_soon(self._end, stream.id, lost)
        return stream

    async def close(self) -> None:
        """Close; open streams end with WorkerLost, ``on_lost`` is not called. Idempotent.

        Cancelled: closed all the same.
        """
        self._on_lost = None
        self._link.close()
        await self._link.wait_gone(CLOSE_TIMEOUT_S)

    def give_up(self, error: TokenmillError) -> None:
        """Break the connection at once, for this reason, as if the peer were lost."""
        self._link.fail(error)

    def statistics(self) -> ConnectionStatistics:
        """Return the counts now."""
        traffic = self._traffic
        return ConnectionStatistics(
            open_streams=len(self._streams),
            open_streams_peak=self._peak,
            paused_streams=sum(stream._paused for stream in self._streams.values()),
            streams_total=self._last_id,
            items_in=self._items_in,
            frames_in=traffic.frames_in,
            frames_out=traffic.frames_out,
            bytes_in=traffic.bytes_in,
            bytes_out=traffic.bytes_out,
            backlog_bytes=0 if self.closed else self._link.backlog_bytes,
        )

    # What the link says

    def link_made(self) -> None:
        """Wait for the peer's Hello."""

    def link_greeted(self, hello: Hello) -> None:
        """Let ``connect`` return."""
        if not self._greeted.done():
            self._greeted.set_result(hello)
            self._on_lost = self._wanted_on_lost

    def writable_changed(self, *, writable: bool) -> None:
        """Nothing to hold back: what a client writes is bounded by ``max_backlog_bytes``."""

    def frame_received(self, frame: Frame[CallT, ItemT]) -> None:
        """Pass items and ends to their streams."""
        if isinstance(frame, Data):
            self._items_received(frame.items)
            for stream_id in frame.ended:
                self._check_known(stream_id)
                self._end(stream_id, None)
        elif isinstance(frame, Abort):
            self._check_known(frame.stream)
            self._end(frame.stream, _error(frame))
        elif isinstance(frame, GoAway):
            self.going_away = True
        else:
            raise ProtocolError(f"the server sent {type(frame).__name__}, which only a client may")

    def link_lost(self, error: TokenmillError) -> None:
        """End every stream, then tell the owner."""
        self.closed = True
        kind = WorkerStalled if isinstance(error, WorkerStalled) else WorkerLost
        for stream_id in list(self._streams):
            lost = kind(f"{self._peer}: {error.message}")
            lost.__cause__ = error
            self._end(stream_id, lost)
        if not self._greeted.done():
            self._greeted.set_exception(error)
        if self._on_lost is not None:
            on_lost, self._on_lost = self._on_lost, None
            try:
                on_lost(error)
            except Exception as failure:  # noqa: BLE001  a callback's bug must not stop the cleanup
                self._report(failure, "on_lost raised")

    # Inside

    def _connected(self) -> None:
        """Leave nothing behind if connecting failed: no socket, and no exception that nobody looked at."""
        self._greeted.cancel()
        if self._greeted.cancelled():
            self._link.fail(WorkerLost("connecting was given up"))
        else:
            self._greeted.exception()

    def _items_received(self, items: list[tuple[int, ItemT]]) -> None:
        streams = self._streams
        half = self._half
        self._items_in += len(items)
        for stream_id, item in items:
            try:
                stream = streams[stream_id]
            except KeyError:
                self._check_known(stream_id)
                continue
            stream._taken += 1
            try:
                stream._on_item(item)
            except Exception as failure:  # noqa: BLE001  per-stream boundary: the others go on
                self._callback_failed(stream, failure)
            if stream._taken >= half:
                self._consumed_half(stream)

    def _consumed_half(self, stream: ClientStream[CallT, ItemT]) -> None:
        if stream.closed:
            return
        if stream._taken > self._limits.window:
            raise ProtocolError(f"the server sent more on stream {stream.id} than it had credit for")
        if not stream._paused:
            self._grant(stream)

    def _grant(self, stream: ClientStream[CallT, ItemT]) -> None:
        taken, stream._taken = stream._taken, 0
        self._link.write(Credit(stream.id, taken))

    def _cancel(self, stream: ClientStream[CallT, ItemT]) -> None:
        stream.closed = True
        stream._forget_callbacks()
        del self._streams[stream.id]
        self._link.write(Cancel(stream.id))

    def _end(self, stream_id: int, error: TokenmillError | None) -> None:
        """Call ``on_end``, unless the stream was cancelled meanwhile."""
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        stream.closed = True
        on_end = stream._forget_callbacks()
        try:
            on_end(error)
        except Exception as failure:  # noqa: BLE001  per-stream boundary: the others go on
            self._report(failure, "on_end raised")

    def _callback_failed(self, stream: ClientStream[CallT, ItemT], failure: Exception) -> None:
        self._report(failure, "on_item raised")
        if not stream.closed:
            self._link.write(Cancel(stream.id))
            error = WorkerFailed(f"the reader of stream {stream.id} failed: {failure!r}")
            error.__cause__ = failure
            self._end(stream.id, error)

    def _refusal(self) -> TokenmillError | None:
        if self.closed:
            return None
        if self.going_away:
            return WorkerLost(f"{self._peer} is going away")
        if len(self._streams) >= self._limits.max_streams:
            return Overloaded(
                f"{len(self._streams)} streams are open to {self._peer} (max_streams)",
                retry_after_s=RETRY_AFTER_S,
            )
        if self._link.backlog_bytes > self._limits.max_backlog_bytes // 2:
            return Overloaded(
                f"{self._peer} has not taken {self._link.backlog_bytes} bytes", retry_after_s=RETRY_AFTER_S
            )
        return None

    def _check_known(self, stream_id: int) -> None:
        if not 0 < stream_id <= self._last_id:
            raise ProtocolError(f"the server named stream {stream_id}, which was never opened")

    def _report(self, failure: Exception, message: str) -> None:
        self._loop.call_exception_handler({"message": f"{self.address}: {message}", "exception": failure})


def _nobody(_: object, /) -> None:
    """Stand for the callbacks of a stream that is over."""


def _error(frame: Abort) -> TokenmillError:
    if frame.code == Overloaded.code:
        return Overloaded(frame.message, retry_after_s=RETRY_AFTER_S)
    if frame.code == WorkerLost.code:
        return WorkerLost(frame.message)
    return WorkerFailed(frame.message)
