"""The sending side's shell: accepts receivers, feeds the export table, carries its instructions out.

It must not decide who may read what, or until when: that is the table's business.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenmill.clock import Clock
from tokenmill.errors import ProtocolError
from tokenmill.serve.transfer import control, exports
from tokenmill.serve.transfer.base import KvMemory
from tokenmill.serve.transfer.channel import Channel
from tokenmill.serve.transfer.jobs import run_job
from tokenmill.serve.transfer.moving import DigestJob, Extent, SendJob, share
from tokenmill.serve.transfer.shm import read_only
from tokenmill.serve.transfer.tcp import tune

_MAX_CONNECTIONS = 1024
"""At the bound the connection that has been idle longest is closed, or if none is, the new one."""
_FIRST_OPEN_S = 10.0
"""A connection that opens no export for so long is no receiver."""
_ACCEPT_RETRY_S = 0.1
"""Out of file descriptors: wait for some to be closed."""
SMALL_BYTES = 128 << 10
"""Up to here the loop's thread moves the bytes itself: waking a thread would take longer."""


class Sender:
    """Serves the exports of one memory on the loop it is created on."""

    def __init__(self, memory: KvMemory, clock: Clock, pool: ThreadPoolExecutor) -> None:
        self._memory = memory
        self._clock = clock
        self._pool = pool
        self._table = exports.ExportTable(shares_fd=memory.fd is not None and memory.region is not None)
        self._callbacks: dict[int, Callable[[bool], None]] = {}
        self._channels: dict[exports.ConnectionId, Channel] = {}
        self._connections: dict[exports.ConnectionId, asyncio.Task[None]] = {}
        self._listeners: list[socket.socket] = []
        self._retries: dict[socket.socket, asyncio.TimerHandle] = {}
        self._ids = itertools.count(1)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due: float | None = None

    def listen(self, listener: socket.socket) -> None:
        """Accept receivers on a listening socket; it is ours from now on."""
        self._listeners.append(listener)
        self._watch(listener)

    def add(
        self,
        blocks: Sequence[int],
        tokens: int,
        lease_s: float,
        on_released: Callable[[bool], None],
        key: exports.ExportKey | None = None,
    ) -> exports.Entry:
        """Offer tokens; ``on_released`` is called once, perhaps from within the call that ends the export."""
        entry = self._table.add(blocks, tokens, lease_s, key)
        self._callbacks[entry.export] = on_released
        return entry

    def tell(self, event: exports.Event) -> None:
        """Feed a fact to the table and carry out what follows."""
        for instruction in self._table.handle(event, self._clock.now()):
            match instruction:
                case exports.Send(connection, message, with_fd):
                    self._send(connection, message, with_fd=with_fd)
                case exports.Free(export, taken):
                    self._callbacks.pop(export)(taken)
        self._arm()

    async def stop(self) -> None:
        """Withdraw all exports, close all connections. When it returns no thread reads the memory."""
        while self._listeners:
            self._hush(self._listeners.pop())
        for export in list(self._table.entries):
            self.tell(exports.OwnerWithdrew(export, "the sender is shutting down"))
        for channel in self._channels.values():
            channel.abort()
        await asyncio.gather(*self._connections.values(), return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, connection: exports.ConnectionId, message: control.Message, *, with_fd: bool) -> None:
        channel = self._channels.get(connection)
        if channel is None:
            return
        if not with_fd:
            channel.post(message)
            return
        assert self._memory.fd is not None
        fd = read_only(self._memory.fd)
        try:
            channel.post(message, fd)
        finally:
            os.close(fd)

    def _arm(self) -> None:
        """Have ``TimePassed`` told at the table's next deadline."""
        deadline = self._table.next_deadline()
        if deadline == self._timer_due and self._timer is not None:
            return
        self._timer_due = deadline
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            delay = max(0.0, deadline - self._clock.now())
            self._timer = asyncio.get_running_loop().call_later(delay, self._timed)

    def _timed(self) -> None:
        self._timer = None
        self.tell(exports.TimePassed())

    def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            sock, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionError):
            return  # it has gone away again
        except OSError:
            loop.remove_reader(listener.fileno())
            self._retries[listener] = loop.call_later(_ACCEPT_RETRY_S, self._watch, listener)
            return
        self._admit(sock)

    def _watch(self, listener: socket.socket) -> None:
        self._retries.pop(listener, None)
        asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def _hush(self, listener: socket.socket) -> None:
        retry = self._retries.pop(listener, None)
        if retry is not None:
            retry.cancel()
        asyncio.get_running_loop().remove_reader(listener.fileno())
        listener.close()

    def _admit(self, sock: socket.socket) -> None:
        if len(self._channels) >= _MAX_CONNECTIONS:
            open_ = [c for c, channel in self._channels.items() if channel.is_open]
            idle = next((c for c in open_ if self._table.read_by(c) is None), None)
            if len(open_) >= _MAX_CONNECTIONS and idle is None:
                sock.close()
                return
            if len(open_) >= _MAX_CONNECTIONS and idle is not None:
                self._channels[idle].abort()
        try:
            tune(sock)
        except OSError:  # the peer has hung up already
            sock.close()
            return
        connection = next(self._ids)
        self._channels[connection] = Channel(sock)
        task = asyncio.create_task(self._serve(connection), name=f"kv-transfer-{connection}")
        self._connections[connection] = task

    async def _serve(self, connection: exports.ConnectionId) -> None:
        """Serve one connection until either side hangs up; whatever a peer does ends only its connection."""
        channel = self._channels[connection]
        try:
            await self._converse(connection, channel)
        except (OSError, ProtocolError):
            channel.abort()  # gone, silent for too long, or no peer of ours
        finally:
            del self._channels[connection]
            del self._connections[connection]
            channel.close()
            self.tell(exports.ReaderLost(connection))

    async def _converse(self, connection: exports.ConnectionId, channel: Channel) -> None:
        timeout_s: float | None = _FIRST_OPEN_S
        while True:
            message = await channel.receive(timeout_s)
            match message:
                case control.Open(export, token, need_fd):
                    self.tell(
                        exports.ReaderOpened(connection, export, token, need_fd=need_fd and channel.is_unix)
                    )
                case control.Join(export, token):
                    self.tell(exports.ReaderJoined(connection, export, token))
                case control.Beat():
                    self.tell(exports.ReaderBeat(connection))
                case control.Fetch():
                    await self._stream(connection, channel, message)
                case control.Check(first, last):
                    await self._check(connection, channel, first, last)
                case control.Release():
                    self.tell(exports.ReaderReleased(connection))
                case _:
                    raise ProtocolError(f"a receiver does not say {type(message).__name__}")
            # One that has an export open has to beat; one that only helps, or has released, may stay idle.
            entry = self._table.read_by(connection)
            if entry is not None:
                timeout_s = entry.lease_s if entry.reader == connection else None
            elif isinstance(message, control.Release):
                timeout_s = None

    def _entry(self, connection: exports.ConnectionId, first: int, last: int) -> exports.Entry | None:
        """Return the export that a receiver asks for; None when it has just ended. Raises ProtocolError."""
        entry = self._table.read_by(connection)
        if entry is not None and not 0 <= first < last <= entry.ready:
            raise ProtocolError(f"tokens {first} to {last} of {entry.ready} that are ready")
        return entry

    async def _stream(self, connection: exports.ConnectionId, channel: Channel, fetch: control.Fetch) -> None:
        entry = self._entry(connection, fetch.first, fetch.last)
        if not 0 <= fetch.part < fetch.parts <= self._memory.layout.planes:
            raise ProtocolError(f"part {fetch.part} of {fetch.parts} of {self._memory.layout.planes} planes")
        if entry is None:
            channel.post(control.Refused("the export has ended"))
            return
        planes = share(self._memory.layout.planes, fetch.part, fetch.parts)
        wanted = Extent(self._memory, entry.blocks, fetch.first, fetch.last, planes)
        channel.post(control.Data(wanted.size_bytes))
        if wanted.size_bytes <= SMALL_BYTES:
            channel.post_raw(b"".join(wanted.views(SMALL_BYTES)))
            return
        beat = exports.ReaderBeat(connection)
        with channel.lend() as sock:
            job = SendJob(sock, wanted)
            await run_job(self._pool, job, stall_s=entry.lease_s, on_progress=lambda: self.tell(beat))
        self.tell(beat)

    async def _check(self, connection: exports.ConnectionId, channel: Channel, first: int, last: int) -> None:
        entry = self._entry(connection, first, last)
        if entry is None:
            channel.post(control.Refused("the export has ended"))
            return
        job = DigestJob(Extent(self._memory, entry.blocks, first, last))
        beat = exports.ReaderBeat(connection)
        await run_job(self._pool, job, stall_s=entry.lease_s, on_progress=lambda: self.tell(beat))
        channel.post(control.Digest(job.xxh3))
