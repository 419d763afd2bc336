"""The registry of one host: a folder that its processes share. No server to start.

This is the asynchronous shell: threads for the blocking store, renewal of leases, polling for watches.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import structlog

from tokenmill.clock import Clock, SystemClock
from tokenmill.errors import ServiceError
from tokenmill.serve.fabric.registry_base import Lease, check_key, check_ttl, check_value
from tokenmill.serve.fabric.registry_file_store import FileStore, Signature
from tokenmill.serve.fabric.registry_watch import BufferedWatch, WatchHub

P = ParamSpec("P")
R = TypeVar("R")

POLL_S = 0.05
"""How often watches look whether anything was written: some microseconds."""

LOOKS_A_REAP = 5
"""So many looks, and whoever holds a lease is looked at too: a thread, 0.1 ms, and 0.03 ms a lease."""

_RENEWALS_PER_TTL = 3


class FileLease:
    """A lease that a task renews."""

    def __init__(self, registry: FileRegistry, lease_id: str, ttl_s: float) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self.lost = False
        """It was not renewed in time; its keys are gone."""
        self._registry = registry

    async def revoke(self) -> None:
        """End it and delete its keys. Cancelled: it may or may not have happened."""
        await self._registry.end_lease(self)


class FileRegistry:
    """Keys in a folder. A killed process's keys vanish at once, a frozen one's after its lease's ttl."""

    def __init__(self, folder: Path, *, clock: Clock | None = None, poll_s: float = POLL_S) -> None:
        self._store = FileStore(folder, clock or SystemClock())
        self._poll_s = poll_s
        self._hub = WatchHub()
        self._renewals: dict[str, asyncio.Task[None]] = {}
        self._polling = asyncio.Lock()
        self._poll_task: asyncio.Task[None] | None = None
        self._signature: Signature | None = None
        self._present: dict[str, bytes] = {}

    async def start(self) -> None:
        """Make the folder and clear away what dead processes left. Raises ConfigError."""
        await self._run(self._store.prepare)
        await self._run(self._store.reap)

    async def stop(self) -> None:
        """Revoke own leases, end watches and tasks. Idempotent. Cancelled: leases end by their ttl."""
        self._hub.close()
        poll_task, self._poll_task = self._poll_task, None
        if poll_task is not None:
            await _cancelled(poll_task)
        for lease_id in list(self._renewals):
            try:
                await self._end(lease_id)
            except ServiceError as error:
                _log().warning("lease not revoked", lease=lease_id, error=str(error))

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> None:
        """Set a key."""
        check_key(key)
        check_value(value)
        await self._run(self._store.put, key, value, lease.id if lease else "")

    async def get(self, key: str) -> bytes | None:
        """Return a key's value."""
        check_key(key)
        return await self._run(self._store.get, key)

    async def list(self, prefix: str) -> dict[str, bytes]:
        """Return the keys that begin with ``prefix``."""
        return await self._run(self._store.read_all, prefix)

    async def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        check_key(key)
        return await self._run(self._store.delete, key)

    async def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes | None, *, lease: Lease | None = None
    ) -> bool:
        """Set or delete a key if it is as expected."""
        check_key(key)
        check_value(value or b"")
        lease_id = lease.id if lease else ""
        return await self._run(self._store.compare_and_swap, key, expected, value, lease_id)

    async def lease(self, ttl_s: float) -> Lease:
        """Return a lease, renewed thrice a ttl."""
        check_ttl(ttl_s)
        lease = FileLease(self, await self._run(self._store.create_lease, ttl_s), ttl_s)
        if self._hub.closed:
            await self._run(self._store.end_lease, lease.id)
            raise ServiceError("the registry is stopped: take leases before")
        self._renewals[lease.id] = asyncio.create_task(self._renew(lease), name=f"renew {lease.id}")
        return lease

    def watch(self, prefix: str) -> BufferedWatch:
        """Return a watch; what is written is seen within about ``poll_s``, a death within five times that."""
        return BufferedWatch(self._hub, prefix, self._snapshot)

    async def end_lease(self, lease: FileLease) -> None:
        """Stop renewing a lease and end it."""
        if lease.id in self._renewals:
            await self._end(lease.id)

    # Inside

    async def _run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Do the store's work in a thread; what the file system complains of becomes ServiceError."""
        try:
            return await asyncio.to_thread(work, *args, **kwargs)
        except OSError as error:
            raise ServiceError(f"registry folder: {error}") from error

    async def _end(self, lease_id: str) -> None:
        await _cancelled(self._renewals.pop(lease_id))
        await self._run(self._store.end_lease, lease_id)

    async def _renew(self, lease: FileLease) -> None:
        """Runs until the lease is revoked or lost. Trouble with the folder is retried while the ttl lasts."""
        while not lease.lost:
            await asyncio.sleep(lease.ttl_s / _RENEWALS_PER_TTL)
            try:
                lease.lost = not await self._run(self._store.renew, lease.id)
            except ServiceError as error:
                _log().warning("lease not renewed", lease=lease.id, error=str(error))
        _log().warning("lease lost", lease=lease.id)

    async def _snapshot(self) -> dict[str, bytes]:
        if self._poll_task is None and not self._hub.closed:
            self._poll_task = asyncio.create_task(self._poll(), name="registry poll")
        await self._refresh()
        return self._present

    async def _poll(self) -> None:
        """Runs until ``stop``. Trouble with the folder is retried; anything else ends the watches with it."""
        looks = 0
        while True:
            await asyncio.sleep(self._poll_s)
            looks += 1
            try:
                if self._hub.busy and (looks % LOOKS_A_REAP == 0 or self._written()):
                    await self._refresh()
            except ServiceError as error:
                _log().warning("registry not read", error=str(error))
            except Exception as error:  # noqa: BLE001  nobody awaits this task: its watchers must hear
                self._hub.close(error)
                self._poll_task = None
                return

    def _written(self) -> bool:
        """Whether somebody has written since the last reading. Two questions to a local file system."""
        try:
            return self._store.signature() != self._signature
        except OSError as error:
            raise ServiceError(f"registry folder: {error}") from error

    async def _refresh(self) -> None:
        """Look once, and tell the watches what is new."""
        async with self._polling:
            found = await self._run(self._store.poll, self._signature)
            if found is None:
                return
            before = self._present
            self._signature, self._present = found
            for key in before.keys() - self._present.keys():
                self._hub.publish(key, None)
            for key, value in self._present.items():
                if before.get(key) != value:
                    self._hub.publish(key, value)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _log() -> structlog.typing.FilteringBoundLogger:
    log: structlog.typing.FilteringBoundLogger = structlog.get_logger(__name__)
    return log
