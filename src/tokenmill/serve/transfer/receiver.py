"""The receiving side's shell: reaches peers, maps their memory, runs pulls.

It must not know what a pull does on its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tokenmill.clock import Clock
from tokenmill.errors import HandoffFailed, ProtocolError
from tokenmill.serve.transfer import control
from tokenmill.serve.transfer.base import KvMemory
from tokenmill.serve.transfer.channel import Channel, ChannelClosed
from tokenmill.serve.transfer.convert import check_convertible
from tokenmill.serve.transfer.driver import Driver
from tokenmill.serve.transfer.pull import Pull
from tokenmill.serve.transfer.shm import PeerMemory

_KEPT = 4
"""Idle connections kept to one peer: enough for two pulls of a large cache at a time."""
_STOPPING = "the receiver is shutting down"


@dataclass
class Peer:
    """A sender we know. Its memory stays mapped as long as a connection to it is open, and so it lives.

    Some connections are kept for the next pull, and to see the peer die.
    """

    channels: set[Channel] = field(default_factory=set)
    idle: list[Channel] = field(default_factory=list)
    mapped: PeerMemory | None = None


class Receiver:
    """Pulls into one memory."""

    def __init__(
        self,
        memory: KvMemory,
        drivers: Mapping[str, Driver],
        clock: Clock,
        pool: ThreadPoolExecutor,
        *,
        checksums: bool,
    ) -> None:
        self._memory = memory
        self._drivers = drivers
        self._clock = clock
        self._pool = pool
        self._checksums = checksums
        self._peers: dict[bytes, Peer] = {}
        self._connecting: set[asyncio.Task[socket.socket]] = set()
        self._running = 0
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._stopping = False

    async def pull(
        self,
        descriptor: bytes,
        blocks: Sequence[int],
        *,
        from_token: int,
        idle_timeout_s: float,
        sealed: bool = False,
        on_moved: Callable[[float], None] | None = None,
    ) -> bytes:
        """As ``StreamTransport.pull``. Cancelled: no thread writes our blocks any more."""
        if self._stopping:
            raise HandoffFailed(_STOPPING)
        ticket = control.decode_ticket(descriptor)
        check_convertible(ticket.layout, self._memory.layout)
        self._check_room(ticket, blocks, from_token)
        self._running += 1
        self._quiet.clear()
        started = self._clock.now()
        try:
            meta = await self._pull_ahead(ticket, blocks, from_token, idle_timeout_s) if sealed else None
            waited_s = 0.0
            if meta is None:
                meta, waited_s = await self._pull(ticket, blocks, from_token, idle_timeout_s)
        except (OSError, ProtocolError) as error:
            if self._stopping:
                raise HandoffFailed(_STOPPING) from error
            raise HandoffFailed(f"the KV cache did not arrive: {error}") from error
        finally:
            self._running -= 1
            if not self._running:
                self._quiet.set()
        if on_moved is not None:
            on_moved(self._clock.now() - started - waited_s)
        return meta

    async def stop(self) -> None:
        """Fail all pulls and drop all peers. When it returns no thread writes the memory."""
        self._stopping = True
        for task in self._connecting:
            task.cancel()
        for peer in list(self._peers.values()):
            for channel in list(peer.channels):
                channel.abort()
        await self._quiet.wait()

    def _check_room(self, ticket: control.Ticket, blocks: Sequence[int], from_token: int) -> None:
        room = len(blocks) * self._memory.layout.block_tokens
        if ticket.tokens > room or not 0 <= from_token <= ticket.tokens:
            raise ValueError(f"{ticket.tokens} tokens from {from_token} on do not go into room for {room}")
        if not all(0 <= block < self._memory.blocks for block in blocks):
            raise ValueError(f"a block is not in 0 .. {self._memory.blocks - 1}: {blocks}")

    async def _pull_ahead(
        self, ticket: control.Ticket, blocks: Sequence[int], from_token: int, idle_timeout_s: float
    ) -> bytes | None:
        """Pull a sealed export on a kept connection from memory that is mapped: a single round trip.

        Returns None where that cannot be: ask as usual.
        """
        peer = self._peers.get(ticket.memory)
        if peer is None or peer.mapped is None or not peer.idle or self._checksums:
            return None
        channel = peer.idle.pop()
        channel.unwatch()
        pull = self._new_pull(ticket, channel, blocks, idle_timeout_s)
        try:
            meta = await pull.run_ahead(from_token)
        except ChannelClosed:
            self._hang_up(ticket.memory, channel)
            return None
        except BaseException:
            self._hang_up(ticket.memory, channel)
            raise
        self._keep(ticket.memory, channel)
        return meta

    def _new_pull(
        self, ticket: control.Ticket, channel: Channel, blocks: Sequence[int], idle_timeout_s: float
    ) -> Pull:
        return Pull(
            ticket,
            channel,
            memory=self._memory,
            blocks=blocks,
            mapped=self._peers[ticket.memory].mapped,
            helpers=lambda count: self._helpers(ticket, count, idle_timeout_s),
            clock=self._clock,
            pool=self._pool,
            idle_timeout_s=idle_timeout_s,
            checksums=self._checksums,
        )

    async def _pull(
        self, ticket: control.Ticket, blocks: Sequence[int], from_token: int, idle_timeout_s: float
    ) -> tuple[bytes, float]:
        """Return the sender's meta, and how many seconds its tokens were waited for."""
        channel = await self._open(ticket, idle_timeout_s)
        try:
            pull = self._new_pull(ticket, channel, blocks, idle_timeout_s)
            meta = await pull.run(from_token)
        except BaseException:
            self._hang_up(ticket.memory, channel)  # which tells the sender that nobody will take the rest
            raise
        self._keep(ticket.memory, channel)
        return meta, pull.waited_s

    @contextlib.asynccontextmanager
    async def _helpers(
        self, ticket: control.Ticket, count: int, timeout_s: float
    ) -> AsyncIterator[list[Channel]]:
        """Lend ``count`` connections that have joined the export. Cancelled or failed: they are hung up."""
        channels: list[Channel] = []
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(count):
                    channels.append((await self._reach(ticket))[0])
                    channels[-1].post(control.Join(ticket.export, ticket.token))
                for channel in channels:
                    if not isinstance(answer := await channel.receive(None), control.Opened):
                        raise ProtocolError(f"a further connection is refused: {answer}")
            yield channels
        except BaseException:
            for channel in channels:
                self._hang_up(ticket.memory, channel)
            raise
        for channel in channels:
            self._keep(ticket.memory, channel)

    async def _open(self, ticket: control.Ticket, timeout_s: float) -> Channel:
        """Return a channel with the export open. A kept connection that has died is replaced once."""
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    channel, kept = await self._reach(ticket)
                    try:
                        await self._claim(ticket, channel)
                    except ChannelClosed:
                        self._hang_up(ticket.memory, channel)
                        if not kept or self._stopping:
                            raise
                    except BaseException:
                        self._hang_up(ticket.memory, channel)
                        raise
                    else:
                        return channel
        except TimeoutError as error:
            raise HandoffFailed(f"the sender did not answer for {timeout_s:g} s") from error

    async def _claim(self, ticket: control.Ticket, channel: Channel) -> None:
        peer = self._peers[ticket.memory]
        channel.post(control.Open(ticket.export, ticket.token, peer.mapped is None and channel.is_unix))
        message = await channel.receive(None)  # the deadline is the caller's
        match message:
            case control.Refused():
                raise message.error()
            case control.Opened():
                fd = channel.take_fd()
            case _:
                raise ProtocolError(f"unexpected from a sender: {message}")
        if fd is None:
            return
        if peer.mapped is None:
            peer.mapped = PeerMemory(fd, ticket.layout, ticket.memory_blocks)
        else:  # another pull was faster
            os.close(fd)

    async def _reach(self, ticket: control.Ticket) -> tuple[Channel, bool]:
        """Return a connection to the sender, and whether it had been kept. Raises HandoffFailed."""
        known = self._peers.get(ticket.memory)
        if known is not None and known.idle:
            channel = known.idle.pop()
            channel.unwatch()
            return channel, True
        problems: list[str] = []
        for name, address in ticket.endpoints:
            driver = self._drivers.get(name)
            if driver is None or not driver.reachable(address):
                problems.append(f"{name}: not on this host" if driver else f"{name}: not enabled here")
                continue
            try:
                channel = Channel(await self._connect(driver, address))
            except OSError as error:
                problems.append(f"{name}: {error}")
                continue
            self._peers.setdefault(ticket.memory, Peer()).channels.add(channel)
            return channel, False
        raise HandoffFailed(f"the sender cannot be reached ({'; '.join(problems) or 'it names no address'})")

    async def _connect(self, driver: Driver, address: str) -> socket.socket:
        """Connect, in a task of its own, so that ``stop`` need not wait for a host that does not answer."""
        task = asyncio.create_task(driver.connect(address), name=f"kv-transfer-connect-{driver.name}")
        self._connecting.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close()  # it had connected when the cancellation came
            if self._stopping and not cancelled_from_outside():
                raise HandoffFailed(_STOPPING) from None
            raise
        finally:
            self._connecting.discard(task)

    def _keep(self, memory: bytes, channel: Channel) -> None:
        """Keep a connection for the next pull, unless there are enough, or hang up."""
        peer = self._peers[memory]
        if len(peer.idle) >= _KEPT or self._stopping or not channel.is_open:
            self._hang_up(memory, channel)
            return
        peer.idle.append(channel)
        channel.watch(lambda: self._hang_up(memory, channel))

    def _hang_up(self, memory: bytes, channel: Channel) -> None:
        peer = self._peers[memory]
        if channel in peer.idle:
            peer.idle.remove(channel)
            channel.unwatch()
        channel.abort()
        channel.close()
        peer.channels.discard(channel)
        if not peer.channels:  # and so no pull is running
            del self._peers[memory]
            if peer.mapped is not None:
                peer.mapped.close()


def cancelled_from_outside() -> bool:
    """Whether somebody cancels the task we run in, rather than one that we wait for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
