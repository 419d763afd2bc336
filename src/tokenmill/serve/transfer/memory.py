"""KV memory of this host that a peer process can map, with no name that a killed process could leave behind.

The bytes live in an anonymous memory file: they are gone when the last process that holds the descriptor
or a mapping is gone. It must not know who reads it, nor what a token is.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile

from tokenmill.errors import ConfigError
from tokenmill.serve.transfer.base import KvLayout

_MADV_POPULATE_WRITE = 23
"""Linux 5.14: fault all pages of a mapping in at once, writable; not named in ``mmap`` of Python 3.11."""


def anonymous_file(size_bytes: int) -> int:
    """Return a new file descriptor of ``size_bytes`` zero bytes in memory that no path leads to.

    On Linux a memfd; elsewhere an unlinked temporary file. Pages are allocated when first touched.
    """
    if sys.platform == "linux":
        fd = os.memfd_create("tokenmill-kv", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size_bytes)
    except (OSError, OverflowError):
        os.close(fd)
        raise
    return fd


def populate(mapping: mmap.mmap, page_bytes: int = mmap.PAGESIZE) -> None:
    """Have all pages of a writable mapping in place, so that the first copy does not pay for them."""
    if sys.platform == "linux":
        try:
            mapping.madvise(_MADV_POPULATE_WRITE)
        except OSError:
            pass  # an older kernel: touch them one by one
        else:
            return
    for offset in range(0, len(mapping), page_bytes):
        mapping[offset] = mapping[offset]


class HostKvMemory:
    """KV memory in host RAM: ``[planes][blocks][block_tokens][token_bytes]`` bytes, zero at first.

    Implements ``base.KvMemory``. Raises ConfigError when a size is not positive or
    the memory cannot be had. With ``prefault`` all pages are allocated now, else when first touched.
    """

    def __init__(self, layout: KvLayout, blocks: int, *, prefault: bool = False) -> None:
        if min(layout.planes, layout.block_tokens, layout.token_bytes, blocks) < 1:
            raise ConfigError(
                f"KV memory needs at least one plane, token, byte and block: {layout}, blocks={blocks}"
            )
        self.layout = layout
        self.blocks = blocks
        self.size_bytes = layout.planes * blocks * layout.block_bytes
        fd = -1
        try:
            fd = anonymous_file(self.size_bytes)
            mapping = mmap.mmap(fd, self.size_bytes)
        except (OSError, OverflowError) as error:
            if fd >= 0:
                os.close(fd)
            raise ConfigError(
                f"no room for {self.size_bytes} bytes of KV memory ({error}): use fewer blocks"
            ) from error
        self._fd: int | None = fd
        self._region: memoryview | None = memoryview(mapping)
        if prefault:
            populate(mapping)

    @property
    def region(self) -> memoryview:
        """All bytes, writable. Tensors made on it stay valid after ``close``. Raises ValueError after it."""
        if self._region is None:
            raise ValueError("this KV memory is closed")
        return self._region

    @property
    def fd(self) -> int:
        """Descriptor of the memory file, ours until ``close``. Raises ValueError after it."""
        if self._fd is None:
            raise ValueError("this KV memory is closed")
        return self._fd

    def read(self, plane: int, block: int, tokens: int) -> bytes:
        """Copy the first ``tokens`` tokens of a block in one plane out. Raises IndexError out of bounds."""
        start = self._offset(plane, block, 0, tokens * self.layout.token_bytes)
        return bytes(self.region[start : start + tokens * self.layout.token_bytes])

    def write(self, plane: int, block: int, data: bytes | memoryview, first_token: int = 0) -> None:
        """Copy ``data`` into one plane of a block, from ``first_token`` on. Raises IndexError."""
        size = memoryview(data).nbytes
        start = self._offset(plane, block, first_token, size)
        self.region[start : start + size] = data

    def close(self) -> None:
        """Give the memory back; again is harmless.

        Never unmaps under a tensor: torch keeps the memoryview alive without holding its buffer, so the
        mapping ends when the last view of it does, which is now if there is none.
        """
        self._region = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _offset(self, plane: int, block: int, first_token: int, size: int) -> int:
        layout = self.layout
        inside = first_token * layout.token_bytes
        if not (0 <= plane < layout.planes and 0 <= block < self.blocks):
            raise IndexError(
                f"plane {plane}, block {block}: there are {layout.planes} planes, {self.blocks} blocks"
            )
        if first_token < 0 or size < 0 or inside + size > layout.block_bytes:
            raise IndexError(f"{size} bytes from token {first_token}: a block has {layout.block_bytes} bytes")
        return (plane * self.blocks + block) * layout.block_bytes + inside
