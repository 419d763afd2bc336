"""One pull: take an export's tokens as they become ready, then release it.

It must not know how the connection was made, nor what the tokens are for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeVar

from tokenmill.clock import Clock
from tokenmill.errors import HandoffFailed, ProtocolError
from tokenmill.serve.transfer import control
from tokenmill.serve.transfer.base import KvMemory
from tokenmill.serve.transfer.channel import Channel
from tokenmill.serve.transfer.convert import place
from tokenmill.serve.transfer.jobs import Job, all_or_none, run_job
from tokenmill.serve.transfer.moving import (
    DigestJob,
    Extent,
    MapJob,
    PlaceJob,
    ReceiveJob,
    StagedReceiveJob,
    share,
)
from tokenmill.serve.transfer.sender import SMALL_BYTES

if TYPE_CHECKING:
    import xxhash

_PIECE_BYTES = 256 << 20
"""Moved in one go; between pieces the sender is listened to and the lease renewed."""
_BEATS_A_LEASE = 3

_PARALLEL_BYTES = 8 << 20
"""From here on the planes are shared between several connections, or several threads that copy."""
_INLINE_COPY_BYTES = 1 << 20
"""Up to here the loop's thread copies itself, in an eighth of a millisecond: to wake another takes longer."""
_STREAMS = 2
"""Over a single one sender and receiver wait in turns: no faster than one core can do the work of both."""
_COPY_THREADS = 2
"""A single one cannot use up a server's memory bandwidth."""

Helpers = Callable[[int], AbstractAsyncContextManager[list[Channel]]]
"""Lends connections that have joined the export; they are hung up if the body fails."""

MessageT = TypeVar("MessageT", bound=control.Message)


class Pull:
    """Takes what ``ticket`` offers into ``blocks`` of ``memory``, over an opened channel.

    ``mapped``: the sender's memory where we can read it; else the bytes come through the channel.
    """

    def __init__(
        self,
        ticket: control.Ticket,
        channel: Channel,
        *,
        memory: KvMemory,
        blocks: Sequence[int],
        mapped: KvMemory | None,
        helpers: Helpers,
        clock: Clock,
        pool: ThreadPoolExecutor,
        idle_timeout_s: float,
        checksums: bool,
    ) -> None:
        self._ticket = ticket
        self._channel = channel
        self._memory = memory
        self._blocks = blocks
        self._mapped = mapped
        self._helpers = helpers
        self._clock = clock
        self._pool = pool
        self._idle_timeout_s = idle_timeout_s
        self._checksums = checksums
        self._ready = 0
        self._meta: bytes | None = None
        self._beat_every_s = ticket.lease_s / _BEATS_A_LEASE
        self._next_beat = self._last_progress = clock.now()
        self.waited_s = 0.0
        """How long it waited for the sender to fill tokens."""

    async def run(self, from_token: int) -> bytes:
        """Return the sender's meta when everything is in.

        Raises HandoffFailed, OSError (the sender is gone), TimeoutError (stalled) and ProtocolError; then,
        and when cancelled, no thread writes our blocks any more, and the channel is of no more use.
        """
        got = from_token
        whole = max(1, _PIECE_BYTES // (self._ticket.layout.token_bytes * self._ticket.layout.planes))
        while self._meta is None or got < self._ready:
            if got < self._ready:
                last = min(self._ready, got + whole)
                await self._take(got, last)
                got = last
                self._progressed()
            else:
                since = self._clock.now()
                self._note(await self._next())
                self.waited_s += self._clock.now() - since
        self._channel.post(control.Release())
        if not (await self._answer(control.Released)).valid:
            raise HandoffFailed(
                "the sender's lease ended while its cache was being copied: what came may be foreign"
            )
        return self._meta

    async def run_ahead(self, from_token: int) -> bytes:
        """As ``run``, for an export that was sealed before its descriptor was let out, in mapped memory.

        The channel has not opened it: that is asked for before the copy and answered after it. Whether what
        was copied is right shows in the end, as in ``run``.
        """
        self._channel.post(control.Open(self._ticket.export, self._ticket.token, need_fd=False))
        await self._take(from_token, self._ticket.tokens)
        self._channel.post(control.Release())
        answer = await self._next()
        if isinstance(answer, control.Refused):
            raise answer.error()
        if not isinstance(answer, control.Opened):
            raise ProtocolError(f"unexpected from a sender: {answer}")
        released = await self._answer(control.Released)
        if self._meta is None or not released.valid:
            raise HandoffFailed("the sender's lease ended while its cache was being copied")
        return self._meta

    async def _take(self, first: int, last: int) -> None:
        target = Extent(self._memory, self._blocks, first, last)
        layout = self._ticket.layout
        size_bytes = (last - first) * layout.token_bytes * layout.planes
        hasher = _new_hasher() if self._checksums else None
        if self._mapped is not None:
            await self._copy(self._mapped, target, size_bytes, hasher)
        else:
            await self._fetch(target, size_bytes, hasher)
        if hasher is not None:
            await self._verify(target, hasher)

    async def _copy(
        self, mapped: KvMemory, target: Extent, size_bytes: int, hasher: xxhash.xxh3_64 | None
    ) -> None:
        blocks, first, last = self._ticket.blocks, target.first, target.last
        if self._memory.region is None or self._memory.layout.dtype != self._ticket.layout.dtype:
            await self._run(PlaceJob(Extent(mapped, blocks, first, last), target, hasher))
            return
        if size_bytes <= _INLINE_COPY_BYTES:
            MapJob(Extent(mapped, blocks, first, last), target).run()
            return
        parts = _COPY_THREADS if size_bytes >= _PARALLEL_BYTES else 1
        shares = [share(self._ticket.layout.planes, part, parts) for part in range(parts)]
        await all_or_none(
            self._run(MapJob(Extent(mapped, blocks, first, last, planes), target)) for planes in shares
        )

    async def _fetch(self, target: Extent, size_bytes: int, hasher: xxhash.xxh3_64 | None) -> None:
        planes = self._ticket.layout.planes
        if size_bytes < _PARALLEL_BYTES or planes < _STREAMS or hasher is not None:
            self._channel.post(control.Fetch(target.first, target.last))
            await self._receive(self._channel, await self._answer(control.Data), target, hasher)
            return
        async with self._helpers(_STREAMS - 1) as helpers:
            await all_or_none(
                self._fetch_share(channel, target, part)
                for part, channel in enumerate([self._channel, *helpers])
            )

    async def _fetch_share(self, channel: Channel, whole: Extent, part: int) -> None:
        channel.post(control.Fetch(whole.first, whole.last, part, _STREAMS))
        planes = share(self._ticket.layout.planes, part, _STREAMS)
        target = Extent(whole.memory, whole.blocks, whole.first, whole.last, planes)
        answer = await (self._answer(control.Data) if part == 0 else channel.receive(self._idle_timeout_s))
        await self._receive(channel, answer, target, None)

    async def _receive(
        self, channel: Channel, answer: control.Message, target: Extent, hasher: xxhash.xxh3_64 | None
    ) -> None:
        layout = self._ticket.layout
        plane_bytes = (target.last - target.first) * layout.token_bytes
        size_bytes = plane_bytes * len(target.planes)
        if answer != control.Data(size_bytes):
            raise ProtocolError(f"{size_bytes} bytes were asked for, but the sender answers {answer}")
        if size_bytes <= SMALL_BYTES:
            data = memoryview(await channel.receive_exactly(size_bytes, self._idle_timeout_s))
            for index, plane in enumerate(target.planes):
                piece = data[index * plane_bytes : (index + 1) * plane_bytes]
                place(self._memory, self._blocks, plane, target.first, piece, layout.dtype)
            if hasher is not None:
                hasher.update(data)
            return
        with channel.lend() as sock:
            if self._memory.region is not None and self._memory.layout.dtype == layout.dtype:
                await self._run(ReceiveJob(sock, target))
            else:
                await self._run(StagedReceiveJob(sock, target, layout, hasher))

    async def _run(self, job: Job) -> None:
        await run_job(self._pool, job, stall_s=self._idle_timeout_s, on_progress=self._beat_if_due)

    async def _verify(self, target: Extent, received: xxhash.xxh3_64) -> None:
        """Compare what lies in our memory, or before a conversion what came, with what the sender has."""
        self._channel.post(control.Check(target.first, target.last))
        expected = (await self._answer(control.Digest)).xxh3
        found = received.intdigest()
        if self._memory.layout.dtype == self._ticket.layout.dtype:
            job = DigestJob(target)
            await self._run(job)
            found = job.xxh3
        if found != expected:
            raise HandoffFailed(
                f"checksum mismatch: tokens {target.first} to {target.last} arrived corrupted"
            )

    async def _answer(self, kind: type[MessageT]) -> MessageT:
        """Return the next message of a kind, taking news from the sender on the way."""
        while True:
            message = await self._next()
            if isinstance(message, kind):
                return message
            self._note(message)

    def _note(self, message: control.Message) -> None:
        match message:
            case control.Ready(tokens) if self._ready < tokens <= self._ticket.tokens:
                self._ready = tokens
            case control.Sealed(meta):
                self._ready, self._meta = self._ticket.tokens, meta
            case control.Withdrawn(reason):
                raise HandoffFailed(f"the sender withdrew the KV cache: {reason}")
            case _:
                raise ProtocolError(f"unexpected from a sender: {message}")
        self._progressed()

    async def _next(self) -> control.Message:
        """Wait for a message, beating meanwhile."""
        while True:
            self._beat_if_due()
            now = self._clock.now()
            left_s = self._last_progress + self._idle_timeout_s - now
            if left_s <= 0:
                raise HandoffFailed(f"nothing arrived from the sender for {self._idle_timeout_s:g} s")
            try:
                return await self._channel.receive(min(left_s, self._next_beat - now))
            except TimeoutError:
                continue

    def _beat_if_due(self) -> None:
        now = self._clock.now()
        if now >= self._next_beat:
            self._channel.post(control.Beat())
            self._next_beat = now + self._beat_every_s

    def _progressed(self) -> None:
        self._last_progress = self._clock.now()


def _new_hasher() -> xxhash.xxh3_64:
    import xxhash  # noqa: PLC0415 - only for checksums: in an engine's own environment there is none

    return xxhash.xxh3_64()
