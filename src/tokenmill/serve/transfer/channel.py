"""A control connection: messages over a non-blocking socket that a copying thread can borrow.

It must not know what the messages mean. asyncio's streams would read ahead into buffers of their own; here
raw data stays in the socket until a thread receives it into its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Iterator

from tokenmill.errors import ProtocolError
from tokenmill.serve.transfer.control import FrameReader, Message, encode_frame

_OUTBOX_BYTES = 64 << 20
"""What may wait for a peer that does not read: a few metas; beyond it the connection is given up."""


class ChannelClosed(ConnectionError):
    """The peer is gone, or we hung up."""


class Channel:
    """One connection. One coroutine receives; ``post`` may be called from anywhere on the loop's thread."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._frames = FrameReader()
        self._outbox = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._lent = False
        self._writing = False
        self._on_hang_up: Callable[[], None] | None = None
        self._aborted = False
        self._closed = False
        self._fds: list[int] = []
        self.is_unix = sock.family == getattr(socket, "AF_UNIX", None)

    @property
    def is_open(self) -> bool:
        """False once either side hung up, as far as we know."""
        return not self._aborted and not self._closed

    def take_fd(self) -> int | None:
        """Return the oldest file descriptor that came along; it is the caller's now."""
        return self._fds.pop(0) if self._fds else None

    async def receive(self, timeout_s: float | None) -> Message:
        """Return the next message.

        Raises TimeoutError (nothing is lost: call again), ChannelClosed, ProtocolError. Cancelled: as after a
        timeout.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                data = await self._receive_some(self._frames.wanted)
                message = self._frames.receive_data(data)
                if message is not None:
                    return message

    async def receive_exactly(self, size_bytes: int, timeout_s: float) -> bytes:
        """Return raw bytes that follow a message; errors as in ``receive``, after which none can be had."""
        parts: list[bytes] = []
        async with asyncio.timeout(timeout_s):
            while size_bytes:
                parts.append(await self._receive_some(size_bytes))
                size_bytes -= len(parts[-1])
        return b"".join(parts)

    def post(self, message: Message, fd: int | None = None) -> None:
        """Send without waiting. A broken connection or a full outbox is noticed by the receiving side."""
        frame = encode_frame(message)
        if not self.is_open:
            return
        if fd is not None and not self._outbox and not self._lent:
            # a socket's empty buffer holds more than this frame
            with contextlib.suppress(BlockingIOError, ConnectionError):
                sent = socket.send_fds(self._sock, [frame], [fd])
                self.post_raw(frame[sent:])
                return
            self.abort()
        self.post_raw(frame)

    def post_raw(self, data: bytes) -> None:
        """Send bytes without waiting, after what was posted before."""
        self._outbox += data
        if len(self._outbox) > _OUTBOX_BYTES:
            self.abort()
        self._flush()

    @contextlib.contextmanager
    def lend(self) -> Iterator[socket.socket]:
        """Lend the socket, blocking, to a thread. Until it is back posts wait; ``abort`` wakes the thread."""
        if not self.is_open or self._outbox:
            raise ChannelClosed("the connection is closed, or its peer does not read")
        self._lent = True
        self._sock.setblocking(True)
        try:
            yield self._sock
        finally:
            self._lent = False
            self._sock.setblocking(False)
            self._flush()

    def watch(self, on_hang_up: Callable[[], None]) -> None:
        """While nobody receives: be told when the peer hangs up or speaks out of turn, until ``unwatch``."""
        self._on_hang_up = on_hang_up
        asyncio.get_running_loop().add_reader(self._sock.fileno(), on_hang_up)

    def unwatch(self) -> None:
        """End ``watch``."""
        self._on_hang_up = None
        if not self._closed:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def abort(self) -> None:
        """Hang up now: whoever waits on the socket, a coroutine or a thread, wakes with an error."""
        if self._aborted or self._closed:
            return
        self._aborted = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._on_hang_up is not None:
            on_hang_up, self._on_hang_up = self._on_hang_up, None
            on_hang_up()

    def close(self) -> None:
        """Close the socket. Not while it is lent or somebody receives: ``abort`` first."""
        if self._closed:
            return
        self._closed = True
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock.fileno())
        loop.remove_writer(self._sock.fileno())
        self._sock.close()
        while (fd := self.take_fd()) is not None:
            os.close(fd)

    async def _receive_some(self, limit: int) -> bytes:
        while True:
            if not self.is_open:
                raise ChannelClosed("the connection was closed")
            try:
                data = self._receive_now(limit)
            except (BlockingIOError, InterruptedError):
                await self._readable()
                continue
            except ConnectionError as error:
                raise ChannelClosed(f"the connection broke: {error}") from error
            if not data:
                raise ChannelClosed("the peer hung up")
            return data

    def _receive_now(self, limit: int) -> bytes:
        if not self.is_unix:
            return self._sock.recv(limit)
        data, fds, _, _ = socket.recv_fds(self._sock, limit, 1)
        self._fds += fds
        if len(self._fds) > 1:
            raise ProtocolError("the peer sends file descriptors that nobody asked for")
        return data

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        loop.add_reader(self._sock.fileno(), _wake, waiter)
        try:
            await waiter
        finally:
            self._waiter = None
            if not self._closed:
                loop.remove_reader(self._sock.fileno())

    def _flush(self) -> None:
        if self._lent or not self.is_open:
            return
        loop = asyncio.get_running_loop()
        while self._outbox:
            try:
                sent = self._sock.send(self._outbox)
            except (BlockingIOError, InterruptedError):
                loop.add_writer(self._sock.fileno(), self._flush)
                self._writing = True
                return
            except OSError:
                self.abort()
                return
            del self._outbox[:sent]
        if self._writing:
            loop.remove_writer(self._sock.fileno())
            self._writing = False


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
