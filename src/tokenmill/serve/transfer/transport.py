"""``KvTransport`` over one or several drivers: one export, reachable in every way the sender has.

A receiver takes the best way that it has too, so that workers need not agree beforehand. It must not know
who asked for a transfer.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from tokenmill.clock import Clock
from tokenmill.serve.transfer import control, exports
from tokenmill.serve.transfer.base import KvMemory
from tokenmill.serve.transfer.driver import Driver
from tokenmill.serve.transfer.receiver import Receiver
from tokenmill.serve.transfer.sender import Sender

_THREADS = 16
"""Each way. More would not copy faster; fewer would let some stalled peers hold up the others."""


class StreamTransport:
    """Implements ``KvTransport``. ``drivers``: best first; its name is theirs, joined by "+"."""

    def __init__(self, drivers: Sequence[Driver], *, clock: Clock, checksums: bool = False) -> None:
        self.name = "+".join(driver.name for driver in drivers)
        self._drivers = {driver.name: driver for driver in drivers}
        self._clock = clock
        self._checksums = checksums
        self._memory: KvMemory | None = None
        self._memory_id = secrets.token_bytes(16)
        self._endpoints: list[tuple[str, str]] = []
        self._running: tuple[Sender, Receiver] | None = None
        self._pools: list[ThreadPoolExecutor] = []

    async def start(self, memory: KvMemory) -> None:
        """Listen on all drivers. Raises ConfigError when one cannot. Cancelled: nothing is left open."""
        if self._running is not None:
            raise RuntimeError("this transport has been started")
        with contextlib.ExitStack() as undo:
            listeners = []
            for name, driver in self._drivers.items():
                listener, address = driver.listen()
                undo.callback(driver.close)
                undo.callback(listener.close)
                self._endpoints.append((name, address))
                listeners.append(listener)
            undo.pop_all()
        # A pool each way: two workers that pull from each other must not wait for each other's threads.
        sending = ThreadPoolExecutor(_THREADS, thread_name_prefix="kv-send")
        receiving = ThreadPoolExecutor(_THREADS, thread_name_prefix="kv-receive")
        self._pools = [sending, receiving]
        sender = Sender(memory, self._clock, sending)
        for listener in listeners:
            sender.listen(listener)
        receiver = Receiver(memory, self._drivers, self._clock, receiving, checksums=self._checksums)
        self._memory = memory
        self._running = sender, receiver

    def export(
        self,
        blocks: Sequence[int],
        tokens: int,
        *,
        lease_s: float,
        on_released: Callable[[bool], None],
        key: exports.ExportKey | None = None,
    ) -> OpenExport:
        """As ``KvTransport.export``. ``on_released`` may be called from within ``withdraw`` and ``stop``.

        ``key``: as in ``ExportTable.add``, for descriptors made of ``blank_ticket``. Raises ValueError when
        the blocks do not exist or do not hold the tokens.
        """
        sender, _ = self._started()
        assert self._memory is not None
        layout = self._memory.layout
        if not 0 < tokens <= len(blocks) * layout.block_tokens or lease_s <= 0:
            raise ValueError(
                f"{tokens} tokens in {len(blocks)} blocks of {layout.block_tokens}, lease_s {lease_s}"
            )
        if not all(0 <= block < self._memory.blocks for block in blocks):
            raise ValueError(f"a block is not in 0 .. {self._memory.blocks - 1}: {blocks}")
        entry = sender.add(blocks, tokens, lease_s, on_released, key)
        ticket = self.blank_ticket().filled(
            export=entry.export, token=entry.token, blocks=blocks, tokens=tokens, lease_s=lease_s
        )
        return OpenExport(sender, entry.export, control.encode_ticket(ticket))

    def blank_ticket(self) -> control.Ticket:
        """Return where and how this memory can be read, for an owner that writes its own descriptors."""
        self._started()
        assert self._memory is not None
        return control.Ticket(
            version=control.VERSION,
            endpoints=self._endpoints,
            memory=self._memory_id,
            memory_blocks=self._memory.blocks,
            layout=self._memory.layout,
            export=0,
            token=b"",
            blocks=[],
            tokens=0,
            lease_s=0,
        )

    async def pull(
        self,
        descriptor: bytes,
        blocks: Sequence[int],
        *,
        from_token: int = 0,
        idle_timeout_s: float = 30.0,
        sealed: bool = False,
        on_moved: Callable[[float], None] | None = None,
    ) -> bytes:
        """As ``KvTransport.pull``; raises ValueError when our blocks do not exist or have no room.

        ``sealed``: the export is known to have been sealed before its descriptor was let out; saves a round
        trip.
        Cancelled: no thread writes our blocks any more, and the sender frees the export.
        """
        _, receiver = self._started()
        return await receiver.pull(
            descriptor,
            blocks,
            from_token=from_token,
            idle_timeout_s=idle_timeout_s,
            sealed=sealed,
            on_moved=on_moved,
        )

    async def stop(self) -> None:
        """Withdraw all exports, fail all pulls, close everything; again is harmless."""
        if self._running is None:
            return
        (sender, receiver), self._running = self._running, None
        await receiver.stop()
        await sender.stop()
        for pool in self._pools:
            pool.shutdown()  # its jobs have ended: this waits for idle threads only
        for driver in self._drivers.values():
            driver.close()
        self._memory = None
        self._endpoints = []

    def _started(self) -> tuple[Sender, Receiver]:
        if self._running is None:
            raise RuntimeError("this transport is not running: await start(memory) first")
        return self._running


class OpenExport:
    """Implements ``Export``. All methods are harmless once the export has ended."""

    def __init__(self, sender: Sender, export: int, descriptor: bytes) -> None:
        self._sender = sender
        self._export = export
        self._descriptor = descriptor

    @property
    def descriptor(self) -> bytes:
        """A ``control.Ticket``."""
        return self._descriptor

    def advance(self, tokens_ready: int) -> None:
        """Tell the receiver, if there is one, that it may copy up to here."""
        self._sender.tell(exports.Advanced(self._export, tokens_ready))

    def seal(self, meta: bytes) -> None:
        """Tell that all is in place; the lease begins."""
        self._sender.tell(exports.OwnerSealed(self._export, meta))

    def withdraw(self, reason: str) -> None:
        """End the export now: the blocks are released before this returns."""
        self._sender.tell(exports.OwnerWithdrew(self._export, reason))
