"""The registry inside one process: for tests, and for a factory that is one process.

Leases end only by ``revoke`` or ``stop``: the process that would have to die is this one.
"""

from __future__ import annotations

import itertools

from tokenmill.errors import DeadlineExceeded, ServiceError
from tokenmill.serve.fabric.registry_base import Lease, check_key, check_ttl, check_value
from tokenmill.serve.fabric.registry_watch import BufferedWatch, WatchHub


class MemoryLease:
    """A set of keys that go together."""

    def __init__(self, registry: MemoryRegistry, lease_id: str, ttl_s: float) -> None:
        self.id = lease_id
        self.ttl_s = ttl_s
        self._registry = registry

    @property
    def lost(self) -> bool:
        """Never: nothing but ``revoke`` ends it."""
        return False

    async def revoke(self) -> None:
        """End it and delete its keys."""
        self._registry.end_lease(self.id)


class MemoryRegistry:
    """A dictionary behind the registry's seam. As large as what is put in."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._owners: dict[str, str] = {}
        self._leases: set[str] = set()
        self._numbers = itertools.count(1)
        self._hub = WatchHub()

    async def start(self) -> None:
        """Nothing to make ready."""

    async def stop(self) -> None:
        """Revoke leases, end watches."""
        for lease_id in list(self._leases):
            self.end_lease(lease_id)
        self._hub.close()

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> None:
        """Set a key."""
        check_key(key)
        check_value(value)
        self._set(key, value, lease)

    async def get(self, key: str) -> bytes | None:
        """Return a key's value."""
        check_key(key)
        return self._values.get(key)

    async def list(self, prefix: str) -> dict[str, bytes]:
        """Return the keys that begin with ``prefix``."""
        return {key: value for key, value in sorted(self._values.items()) if key.startswith(prefix)}

    async def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        check_key(key)
        return self._remove(key)

    async def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes | None, *, lease: Lease | None = None
    ) -> bool:
        """Set or delete a key if it is as expected. Atomic: it never gives way to the loop."""
        check_key(key)
        if self._values.get(key) != expected:
            return False
        if value is None:
            self._remove(key)
        else:
            check_value(value)
            self._set(key, value, lease)
        return True

    async def lease(self, ttl_s: float) -> Lease:
        """Return a new lease."""
        check_ttl(ttl_s)
        if self._hub.closed:
            raise ServiceError("the registry is stopped: take leases before")
        lease = MemoryLease(self, f"memory-{next(self._numbers)}", ttl_s)
        self._leases.add(lease.id)
        return lease

    def watch(self, prefix: str) -> BufferedWatch:
        """Return a watch."""
        return BufferedWatch(self._hub, prefix, lambda: self.list(prefix))

    def end_lease(self, lease_id: str) -> None:
        """Delete a lease's keys."""
        self._leases.discard(lease_id)
        for key in [key for key, owner in self._owners.items() if owner == lease_id]:
            self._remove(key)

    def _set(self, key: str, value: bytes, lease: Lease | None) -> None:
        if lease is not None and lease.id not in self._leases:
            raise DeadlineExceeded(f"lease {lease.id} has ended: take a new one")
        self._values[key] = value
        self._owners.pop(key, None)
        if lease is not None:
            self._owners[key] = lease.id
        self._hub.publish(key, value)

    def _remove(self, key: str) -> bool:
        if key not in self._values:
            return False
        del self._values[key]
        self._owners.pop(key, None)
        self._hub.publish(key, None)
        return True
