"""One connection, either end: frames in, frames out, heartbeat, version check.

It is the asyncio protocol under both the server and the client of ``streams``; it knows when a peer is
alive, and nothing of streams.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from typing import Generic, Protocol, cast

from tokenmill.errors import ProtocolError, TokenmillError, WorkerLost, WorkerStalled
from tokenmill.serve.fabric.codec import FrameCodec
from tokenmill.serve.fabric.frames import VERSION, CallT, Frame, GoAway, Hello, ItemT, Ping, Pong
from tokenmill.serve.fabric.limits import StreamLimits

_TICKS = 4
"""The silence is watched in so many steps: a peer is lost after 1 to 1.25 of ``silence_s``."""


@dataclass
class Traffic:
    """Running counts; shared by all links of one server."""

    frames_in: int = 0
    frames_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class LinkOwner(Protocol[CallT, ItemT]):
    """What a link tells. Called from the transport's callbacks; ``link_lost`` is the last, and comes once."""

    def link_made(self) -> None:
        """The socket is connected."""
        ...

    def link_greeted(self, hello: Hello) -> None:
        """The peer said who it is, in our version."""
        ...

    def frame_received(self, frame: Frame[CallT, ItemT]) -> None:
        """The peer sent a frame. ProtocolError raised here breaks the link."""
        ...

    def writable_changed(self, *, writable: bool) -> None:
        """The peer takes less than it is sent (False), or has caught up."""
        ...

    def link_lost(self, error: TokenmillError) -> None:
        """It is over, for this reason."""
        ...


class FrameLink(asyncio.Protocol, Generic[CallT, ItemT]):
    """Speaks frames over one transport. Frames written in one loop iteration leave in one write."""

    def __init__(
        self,
        owner: LinkOwner[CallT, ItemT],
        codec: FrameCodec[CallT, ItemT],
        limits: StreamLimits,
        hello: Hello,
        traffic: Traffic,
    ) -> None:
        self.closed = False
        self._owner = owner
        self._codec = codec
        self._limits = limits
        self._hello = hello
        self._traffic = traffic
        self._loop = asyncio.get_running_loop()
        self._gone = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._flush_scheduled = False
        self._greeted = False
        self._heard = True
        self._silent_ticks = 0
        self._timers: list[asyncio.TimerHandle] = []

    # What the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say Hello and begin to watch for silence."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        if self.closed:
            self._transport.abort()
            return
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._timers = [
            self._loop.call_later(self._limits.handshake_s, self._hello_missed),
            self._loop.call_later(self._limits.silence_s / _TICKS, self._tick),
        ]
        self._owner.link_made()
        if not self.closed:
            self.write(self._hello)
            self.flush()

    def data_received(self, data: bytes) -> None:
        """Hand on the frames that are complete now."""
        self._heard = True
        self._traffic.bytes_in += len(data)
        try:
            frames = self._codec.feed(data)
            self._traffic.frames_in += len(frames)
            for frame in frames:
                if self.closed:
                    return
                self._receive(frame)
            if self._codec.fault is not None:
                raise self._codec.fault
        except ProtocolError as error:
            self.fail(error)

    def eof_received(self) -> None:
        """Take the peer's end for the end of both directions."""
        self._finish(WorkerLost("the connection was closed by the peer"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the owner, if it does not know yet."""
        reason = f"broke: {exc}" if exc is not None else "was closed by the peer"
        self._finish(WorkerLost(f"the connection {reason}"))
        self._gone.set()

    def pause_writing(self) -> None:
        """Say that the peer does not keep up."""
        self._owner.writable_changed(writable=False)

    def resume_writing(self) -> None:
        """Say that the peer has caught up."""
        if not self.closed:
            self._owner.writable_changed(writable=True)

    # What the owner says

    @property
    def backlog_bytes(self) -> int:
        """Bytes written here that the kernel has not taken."""
        buffered = self._transport.get_write_buffer_size() if self._transport is not None else 0
        return buffered + self._out_bytes

    def write(self, frame: Frame[CallT, ItemT]) -> None:
        """Send at the end of this loop iteration. Raises ProtocolError for a frame above the limit."""
        if self.closed or self._transport is None:
            return
        data = self._codec.encode(frame)
        if self.backlog_bytes > self._limits.max_backlog_bytes:
            self.fail(WorkerLost(f"the peer has not taken {self.backlog_bytes} bytes (max_backlog_bytes)"))
            return
        self._out.append(data)
        self._out_bytes += len(data)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush_scheduled_now)

    def flush(self) -> None:
        """Hand everything written so far to the transport, in one write."""
        out = self._out
        if not out or self._transport is None:
            return
        self._traffic.frames_out += len(out)
        self._traffic.bytes_out += self._out_bytes
        self._out = []
        self._out_bytes = 0
        self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def fail(self, error: TokenmillError) -> None:
        """Break the connection at once, for this reason."""
        self._finish(error)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Close after what is written has left; ``wait_gone`` gives that a deadline."""
        if not self.closed:
            self.flush()
        self._finish(WorkerLost("the connection was closed by this side"))
        if self._transport is not None:
            self._transport.close()

    async def wait_gone(self, timeout_s: float) -> None:
        """Wait until the socket is closed; it is torn down after ``timeout_s``. Cancelled: torn down too."""
        if self._transport is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._gone.wait()
        except TimeoutError:
            pass
        finally:
            self._transport.abort()
        await self._gone.wait()  # An aborted transport says so in the next iteration.

    # Inside

    def _receive(self, frame: Frame[CallT, ItemT]) -> None:
        if not self._greeted:
            self._greet(frame)
        elif isinstance(frame, Ping):
            self.write(Pong())
        elif isinstance(frame, Hello):
            raise ProtocolError("the peer said Hello twice")
        elif not isinstance(frame, Pong):
            self._owner.frame_received(frame)

    def _greet(self, frame: Frame[CallT, ItemT]) -> None:
        if isinstance(frame, GoAway):
            self.fail(WorkerLost(f"the peer refused the connection: {frame.reason}"))
            return
        if not isinstance(frame, Hello):
            raise ProtocolError(f"the peer sent {type(frame).__name__} before Hello")
        if frame.version != VERSION:
            raise ProtocolError(
                f"peer {frame.name!r} speaks version {frame.version} of the fabric, this side {VERSION}: "
                "run the same release of tokenmill on both"
            )
        self._greeted = True
        self._timers[0].cancel()
        self._owner.link_greeted(frame)

    def _flush_scheduled_now(self) -> None:
        self._flush_scheduled = False
        self.flush()

    def _hello_missed(self) -> None:
        self.fail(WorkerLost(f"the peer did not say Hello within {self._limits.handshake_s} s"))

    def _tick(self) -> None:
        """Count the steps in which nothing was heard; ask after the first. The loop's clock is enough: a
        loop that stood still finds what had arrived meanwhile before it counts another step."""
        self._silent_ticks = 0 if self._heard else self._silent_ticks + 1
        self._heard = False
        if self._silent_ticks >= _TICKS:
            self.fail(WorkerStalled(f"nothing was heard from the peer for {self._limits.silence_s} s"))
            return
        if self._silent_ticks:
            self.write(Ping())
        if not self.closed:
            self._timers[1] = self._loop.call_later(self._limits.silence_s / _TICKS, self._tick)

    def _finish(self, error: TokenmillError) -> None:
        if self.closed:
            return
        self.closed = True
        for timer in self._timers:
            timer.cancel()
        self._out = []
        self._out_bytes = 0
        self._owner.link_lost(error)
