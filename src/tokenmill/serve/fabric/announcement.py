"""One key in the registry that says that this process is there, under a lease.

Exists because every process that others look for does it alike. It must not know what the value means.
"""

from __future__ import annotations

import structlog

from tokenmill.errors import ServiceError
from tokenmill.serve.fabric.registry_base import Lease, Registry

_log = structlog.get_logger(__name__)


class Announcement:
    """A process that stood still for longer than the lease lasts (a suspended machine, say) is struck off;
    it announces itself again under a new one."""

    def __init__(self, registry: Registry, key: str, ttl_s: float) -> None:
        self._registry = registry
        self._key = key
        self._ttl_s = ttl_s
        self._lease: Lease | None = None

    @property
    def lost(self) -> bool:
        """The key is no longer there."""
        return self._lease is None or self._lease.lost

    async def say(self, value: bytes) -> None:
        """Put the key. Raises ServiceError. Cancelled: the old or the new value stands."""
        if self._lease is None or self._lease.lost:
            self._lease = await self._registry.lease(self._ttl_s)
        await self._registry.put(self._key, value, lease=self._lease)

    async def try_to_say(self, value: bytes) -> None:
        """Put the key if the registry lets us: trouble there must not end what is being served here."""
        try:
            await self.say(value)
        except ServiceError as error:
            _log.warning("not announced", key=self._key, error=error.message)

    async def withdraw(self) -> None:
        """Remove the key, if the registry lets us; else its lease ends it. Cancelled: either way."""
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await lease.revoke()
            except ServiceError as error:
                _log.debug("not withdrawn", key=self._key, error=error.message)
