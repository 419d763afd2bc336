"""The copying itself: the jobs that threads run to move tokens from one memory to another.

Speed is decided here: runs are as long as both block tables allow, and nothing is copied twice on the way. It
must not know exports, leases or addresses.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from ctypes import PYFUNCTYPE, c_size_t, c_void_p, cast, memmove
from typing import TYPE_CHECKING

from tokenmill.serve.transfer.base import KvLayout, KvMemory
from tokenmill.serve.transfer.convert import paired, place, runs, views
from tokenmill.serve.transfer.jobs import Job
from tokenmill.serve.transfer.shm import address_of

if TYPE_CHECKING:
    import xxhash

_STAGED_BYTES = 256 << 10
"""Converted, or moved through a device's ``read`` and ``write``, in one go: stays in a core's cache."""
_CALL_BYTES = 4 << 20
"""Most that one send or receive moves; in smaller calls a core spends a fifth more time on a byte."""
_STOP_BYTES = 4 << 20
"""A copy looks this often whether it has been stopped: about half a millisecond."""
_LOCKED_BYTES = 64 << 10
"""Shorter copies keep the interpreter's lock: to get it back from a busy thread takes longer than they do."""
_MAX_PIECES = 512
"""Scatter/gather list of one system call; the system allows 1024."""


def share(planes: int, part: int, parts: int) -> range:
    """Return the ``part``-th of ``parts`` nearly equal shares of all planes."""
    return range(part * planes // parts, (part + 1) * planes // parts)


class Extent:
    """Tokens ``first`` .. ``last`` held in ``blocks`` of ``memory``, in some ``planes`` or all."""

    def __init__(
        self, memory: KvMemory, blocks: Sequence[int], first: int, last: int, planes: range | None = None
    ) -> None:
        self.memory = memory
        self.blocks = blocks
        self.first = first
        self.last = last
        self.planes = range(memory.layout.planes) if planes is None else planes

    @property
    def size_bytes(self) -> int:
        """Bytes of all its planes."""
        return len(self.planes) * (self.last - self.first) * self.memory.layout.token_bytes

    def views(self, max_bytes: int) -> Iterator[memoryview]:
        """Yield the bytes in wire order, in pieces of at most ``max_bytes``."""
        return views(self.memory, self.blocks, self.first, self.last, planes=self.planes, max_bytes=max_bytes)


class MapJob(Job):
    """Copy between two host memories of equal dtype: one memmove a run, long ones without the interpreter's
    lock."""

    def __init__(self, source: Extent, target: Extent) -> None:
        super().__init__()
        self._source = source
        self._target = target

    def run(self) -> None:
        """Copy; the regions are held, so that neither can be unmapped meanwhile."""
        source, target = self._source, self._target
        source_region, target_region = source.memory.region, target.memory.region
        assert source_region is not None
        assert target_region is not None
        source_start, target_start = address_of(source_region), address_of(target_region)
        size = source.memory.layout.token_bytes
        pieces = self._pieces(size)
        locked = PYFUNCTYPE(c_void_p, c_void_p, c_void_p, c_size_t)(cast(memmove, c_void_p).value or 0)
        for plane in source.planes:
            from_plane = source_start + plane * source.memory.blocks * source.memory.layout.block_bytes
            to_plane = target_start + plane * target.memory.blocks * target.memory.layout.block_bytes
            for batch, batch_bytes in pieces:
                if self.stopped:
                    return
                for from_offset, to_offset, count_bytes in batch:
                    move = memmove if count_bytes > _LOCKED_BYTES else locked
                    move(to_plane + to_offset, from_plane + from_offset, count_bytes)
                self.moved_bytes += batch_bytes

    def _pieces(self, token_bytes: int) -> list[tuple[list[tuple[int, int, int]], int]]:
        """Return one plane's copies (source offset, target offset, bytes), in batches to look up after."""
        source, target = self._source, self._target
        pairs = paired(
            runs(source.memory.layout, source.blocks, source.first, source.last),
            runs(target.memory.layout, target.blocks, target.first, target.last),
        )
        batches: list[tuple[list[tuple[int, int, int]], int]] = []
        batch: list[tuple[int, int, int]] = []
        batch_bytes = 0
        for from_slot, to_slot, count in pairs:
            size = count * token_bytes
            for at in range(0, size, _STOP_BYTES):
                piece_bytes = min(_STOP_BYTES, size - at)
                batch.append((from_slot * token_bytes + at, to_slot * token_bytes + at, piece_bytes))
                batch_bytes += piece_bytes
                if batch_bytes >= _STOP_BYTES:
                    batches.append((batch, batch_bytes))
                    batch, batch_bytes = [], 0
        return [*batches, (batch, batch_bytes)] if batch else batches


class PlaceJob(Job):
    """Copy out of a host memory into one of another dtype, or on a device: through a buffer, run by run."""

    def __init__(self, source: Extent, target: Extent, hasher: xxhash.xxh3_64 | None) -> None:
        super().__init__()
        self._source = source
        self._target = target
        self._hasher = hasher

    def run(self) -> None:
        """Copy, plane by plane, a piece of whole tokens at a time."""
        source, target = self._source, self._target
        layout = source.memory.layout
        whole = max(1, _STAGED_BYTES // layout.token_bytes) * layout.token_bytes
        for plane in source.planes:
            at = target.first
            planes = range(plane, plane + 1)
            for view in views(
                source.memory, source.blocks, source.first, source.last, planes=planes, max_bytes=whole
            ):
                if self.stopped:
                    return
                place(target.memory, target.blocks, plane, at, view, layout.dtype)
                if self._hasher is not None:
                    self._hasher.update(view)
                at += view.nbytes // layout.token_bytes
                self.moved_bytes += view.nbytes


class SendJob(Job):
    """Send an extent over a blocking stream socket, straight from its memory."""

    def __init__(self, sock: socket.socket, source: Extent) -> None:
        super().__init__()
        self._sock = sock
        self._source = source

    def run(self) -> None:
        """Send. Raises OSError when the peer is gone or ``stop`` cut the line."""
        for batch in _batches(self._source.views(_CALL_BYTES)):
            pending = batch
            while pending and not self.stopped:
                sent = self._sock.sendmsg(pending)
                self.moved_bytes += sent
                pending = _after(pending, sent)

    def stop(self) -> None:
        """Cut the line, which wakes the thread."""
        super().stop()
        cut(self._sock)


class ReceiveJob(Job):
    """Receive an extent over a blocking stream socket, straight into host memory of the sender's dtype."""

    def __init__(self, sock: socket.socket, target: Extent) -> None:
        super().__init__()
        self._sock = sock
        self._target = target

    def run(self) -> None:
        """Receive. Raises OSError when the peer is gone or ``stop`` cut the line."""
        for batch in _batches(self._target.views(_CALL_BYTES)):
            pending = batch
            while pending and not self.stopped:
                received = self._sock.recvmsg_into(pending, 0, socket.MSG_WAITALL)[0]
                if not received:
                    raise ConnectionError("the sender hung up")
                self.moved_bytes += received
                pending = _after(pending, received)

    def stop(self) -> None:
        """Cut the line, which wakes the thread."""
        super().stop()
        cut(self._sock)


class StagedReceiveJob(Job):
    """Receive tokens of layout ``source`` and place them into memory of another dtype, or on a device."""

    def __init__(
        self, sock: socket.socket, target: Extent, source: KvLayout, hasher: xxhash.xxh3_64 | None
    ) -> None:
        super().__init__()
        self._sock = sock
        self._target = target
        self._source = source
        self._hasher = hasher

    def run(self) -> None:
        """Receive, plane by plane, a piece of whole tokens at a time. Raises OSError as ``ReceiveJob``."""
        target = self._target
        token_bytes = self._source.token_bytes
        tokens = max(1, _STAGED_BYTES // token_bytes)
        staging = memoryview(bytearray(tokens * token_bytes))
        for plane in target.planes:
            for at in range(target.first, target.last, tokens):
                piece = staging[: min(tokens, target.last - at) * token_bytes]
                self._fill(piece)
                if self.stopped:
                    return
                place(target.memory, target.blocks, plane, at, piece, self._source.dtype)
                if self._hasher is not None:
                    self._hasher.update(piece)

    def _fill(self, piece: memoryview) -> None:
        while piece and not self.stopped:
            received = self._sock.recv_into(piece, 0, socket.MSG_WAITALL)
            if not received:
                raise ConnectionError("the sender hung up")
            self.moved_bytes += received
            piece = piece[received:]

    def stop(self) -> None:
        """Cut the line, which wakes the thread."""
        super().stop()
        cut(self._sock)


class DigestJob(Job):
    """Compute the xxh3 of an extent in wire order; ``xxh3`` holds it afterwards."""

    def __init__(self, extent: Extent) -> None:
        super().__init__()
        self._extent = extent
        self.xxh3 = 0

    def run(self) -> None:
        """Compute."""
        import xxhash  # noqa: PLC0415 - only for checksums: in an engine's own environment there is none

        hasher = xxhash.xxh3_64()
        for view in self._extent.views(_STOP_BYTES):
            if self.stopped:
                return
            hasher.update(view)
            self.moved_bytes += view.nbytes
        self.xxh3 = hasher.intdigest()


def cut(sock: socket.socket) -> None:
    """Shut a socket down under a thread that is blocked in it."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was down already


def _batches(pieces: Iterator[memoryview]) -> Iterator[list[memoryview]]:
    """Group pieces into what one system call takes: at most ``_CALL_BYTES`` and ``_MAX_PIECES``."""
    batch: list[memoryview] = []
    size = 0
    for piece in pieces:
        if batch and (size + piece.nbytes > _CALL_BYTES or len(batch) == _MAX_PIECES):
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece.nbytes
    if batch:
        yield batch


def _after(pieces: list[memoryview], moved: int) -> list[memoryview]:
    """Return what is left of ``pieces`` after their first ``moved`` bytes."""
    for index, piece in enumerate(pieces):
        if moved < piece.nbytes:
            return [piece[moved:], *pieces[index + 1 :]]
        moved -= piece.nbytes
    return []
