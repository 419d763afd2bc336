"""The seam for moving a KV cache: what memory looks like, who may read it, and until when.

Everything here is called on one event loop's thread. Drivers copy in threads, so that a large cache
never stalls the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec


class KvLayout(msgspec.Struct, frozen=True):
    """How one worker's KV memory is laid out: ``[planes][blocks][block_tokens][token_bytes]``, C order.

    ``planes``: 2 * layers for a transformer (key and value of each layer). ``token_bytes``: bytes of
    one token in one plane (kv_heads * head_dim * itemsize). ``dtype``: "float32", "bfloat16",
    "float16" or, for engines whose cache is no tensor, "bytes". Two layouts are convertible when planes and
    elements a token are equal; block sizes and float dtypes may differ.
    """

    planes: int
    block_tokens: int
    token_bytes: int
    dtype: str

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in one plane."""
        return self.block_tokens * self.token_bytes


class KvMemory(Protocol):
    """The KV memory of one engine."""

    layout: KvLayout
    blocks: int

    @property
    def region(self) -> memoryview | None:
        """All of it as writable bytes, ``planes * blocks * block_bytes`` long; None when it lives on a
        device, and must be staged through ``read`` and ``write``."""
        ...

    @property
    def fd(self) -> int | None:
        """File descriptor that another process of this host can map to the same bytes; None when there
        is none."""
        ...

    def read(self, plane: int, block: int, tokens: int) -> bytes:
        """Copy the first ``tokens`` tokens of a block in one plane out."""
        ...

    def write(self, plane: int, block: int, data: bytes | memoryview, first_token: int = 0) -> None:
        """Copy ``data`` into one plane of a block, from ``first_token`` on."""
        ...


class Export(Protocol):
    """Blocks that a receiver may read until it releases them or the lease ends.

    The lease starts when the export is sealed or withdrawn; until then the sender is filling it and is
    known to live. A receiver that is pulling renews it.
    """

    @property
    def descriptor(self) -> bytes:
        """What the receiver's driver needs; opaque to everyone else."""
        ...

    def advance(self, tokens_ready: int) -> None:
        """The first ``tokens_ready`` tokens (of ``tokens``) are in place; never goes back."""
        ...

    def seal(self, meta: bytes) -> None:
        """All tokens are in place; ``meta`` is handed to the receiver with the end of the pull."""
        ...

    def withdraw(self, reason: str) -> None:
        """There will be no cache: a pull under way fails with ``reason``."""
        ...


class KvTransport(Protocol):
    """One way to move KV blocks."""

    name: str

    async def start(self, memory: KvMemory) -> None:
        """Make ``memory`` readable by peers. Cancelled: nothing is left open."""
        ...

    def export(
        self,
        blocks: Sequence[int],
        tokens: int,
        *,
        lease_s: float,
        on_released: Callable[[bool], None],
    ) -> Export:
        """Offer the first ``tokens`` tokens held in ``blocks``.

        ``on_released`` is called exactly once, on the loop's thread, when the blocks may be reused: with True
        when a receiver has taken them, with False when the lease ended, the receiver died, or the export was
        withdrawn.
        """
        ...

    async def pull(
        self,
        descriptor: bytes,
        blocks: Sequence[int],
        *,
        from_token: int = 0,
        idle_timeout_s: float = 30.0,
        on_moved: Callable[[float], None] | None = None,
    ) -> bytes:
        """Copy the exported tokens from ``from_token`` on into our ``blocks`` and return the sender's meta.

        ``blocks`` are ours for the whole prompt, also for tokens below ``from_token``, which are left alone.
        Copies chunks as they become ready. Releases the export when all is in. Raises ``HandoffFailed`` when
        the sender dies, withdraws, its lease has ended (also when that is only seen after copying), layouts
        are not convertible, or nothing arrives for ``idle_timeout_s``. Cancelled or failed: the export is
        given back (the sender frees it) and our blocks hold garbage. ``on_moved`` is called before it returns
        with the seconds it took, without those in which it waited for the sender to fill tokens.
        """
        ...

    async def stop(self) -> None:
        """Withdraw all exports, end all pulls, close everything."""
        ...
