"""The seam of the registry: a small shared map of bytes, with leases and watches.

Drivers stand behind it; users see ``registry``. It does not know what keys and values mean.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import msgspec

from tokenmill.errors import ConfigError

SYNCED = ""
"""The key of the change which says that all present keys have been told."""

MAX_KEY_BYTES = 512
MAX_VALUE_BYTES = 1024 * 1024


class Change(msgspec.Struct, frozen=True):
    """A key's new value; None: deleted or expired. Key "" (``SYNCED``): all present keys have been told."""

    key: str
    value: bytes | None


class Lease(Protocol):
    """Keys put under it vanish when it ends: revoked, or its process gone. Renewed in the background."""

    id: str
    ttl_s: float

    @property
    def lost(self) -> bool:
        """It ended against our will (this process stood still for ``ttl_s``), and its keys are gone."""
        ...

    async def revoke(self) -> None:
        """End it and delete its keys. Idempotent. Cancelled: it may or may not have happened."""
        ...


class Watch(Protocol):
    """Changes below a prefix: an async context manager, and an iterator inside it.

    First every present key, then a change with key ``SYNCED``, then live changes in the order seen. A reader
    that lags finds a key's changes folded into the last one: what is kept is bounded by the number of keys.
    The iteration ends when the registry stops. Cancelled: nothing is lost, iterating may go on.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Change: ...


class Registry(Protocol):
    """A map of keys to bytes that the processes of a factory share.

    Keys: 1 to 512 bytes of UTF-8 without NUL; values: up to 1 MiB; ConfigError beyond. Operations raise
    ServiceError where the store is in trouble (DeadlineExceeded: it did not answer in time); after that, or
    when cancelled, a change may or may not have happened. To put under a lease that has ended raises
    DeadlineExceeded and changes nothing.
    """

    async def start(self) -> None:
        """Make ready. Raises ConfigError for what the user can mend."""
        ...

    async def stop(self) -> None:
        """Revoke own leases, end watches, for good: open another to go on. Idempotent."""
        ...

    async def put(self, key: str, value: bytes, *, lease: Lease | None = None) -> None:
        """Set a key. Without a lease it stays until it is deleted."""
        ...

    async def get(self, key: str) -> bytes | None:
        """Return a key's value."""
        ...

    async def list(self, prefix: str) -> dict[str, bytes]:
        """Return keys that begin with ``prefix``, in order of key. Each value is whole; the set is no
        snapshot while others write."""
        ...

    async def delete(self, key: str) -> bool:
        """Delete a key; return whether it was there."""
        ...

    async def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes | None, *, lease: Lease | None = None
    ) -> bool:
        """Set ``key`` to ``value`` (None: delete) if it is ``expected`` (None: absent); return whether
        it was.

        Atomic against every other operation of every process.
        """
        ...

    async def lease(self, ttl_s: float) -> Lease:
        """Return a lease that is renewed in the background until revoked or until ``stop``."""
        ...

    def watch(self, prefix: str) -> Watch:
        """Return a watch; enter it to begin."""
        ...


def check_key(key: str) -> None:
    """Raise ConfigError if ``key`` cannot be one."""
    well_formed = key and "\0" not in key and not any("\ud800" <= char <= "\udfff" for char in key)
    if not well_formed or len(key.encode()) > MAX_KEY_BYTES:
        raise ConfigError(
            f"registry key {key[:80]!r}: write 1 to {MAX_KEY_BYTES} bytes of UTF-8 without NUL", param="key"
        )


def check_value(value: bytes) -> None:
    """Raise ConfigError if ``value`` is too large."""
    if len(value) > MAX_VALUE_BYTES:
        raise ConfigError(
            f"a registry value has {len(value)} bytes, the most is {MAX_VALUE_BYTES}: "
            "the registry is for cards and settings, not for data",
            param="value",
        )


def check_ttl(ttl_s: float) -> None:
    """Raise ConfigError if ``ttl_s`` is no duration."""
    if not 0 < ttl_s < float("inf"):
        raise ConfigError(f"lease ttl_s {ttl_s}: must be above 0", param="ttl_s")
