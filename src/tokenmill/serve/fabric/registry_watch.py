"""The reader's end of a watch, the same for all drivers: changes folded by key until they are read.

It knows nothing of where changes come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from tokenmill.serve.fabric.registry_base import SYNCED, Change


class WatchHub:
    """Hands a driver's changes to the watches that want them."""

    def __init__(self) -> None:
        self.closed = False
        self._watches: dict[BufferedWatch, None] = {}

    @property
    def busy(self) -> bool:
        """Whether anyone watches."""
        return bool(self._watches)

    def publish(self, key: str, value: bytes | None) -> None:
        """Tell the watches of ``key``."""
        for watch in self._watches:
            if key.startswith(watch.prefix):
                watch.tell(key, value)

    def join(self, watch: BufferedWatch) -> None:
        """Begin to tell ``watch``; one that comes too late ends after what it has."""
        if self.closed:
            watch.close()
        else:
            self._watches[watch] = None

    def leave(self, watch: BufferedWatch) -> None:
        """Stop telling ``watch``."""
        self._watches.pop(watch, None)

    def close(self, failure: BaseException | None = None) -> None:
        """End all watches, with ``failure`` if there is one, and those to come."""
        self.closed = True
        for watch in list(self._watches):
            watch.close(failure)
        self._watches.clear()


class BufferedWatch:
    """One reader. Bound: one pending change for each key that is present or that the reader believes present;
    a key that came and went unread leaves no trace."""

    def __init__(
        self, hub: WatchHub, prefix: str, snapshot: Callable[[], Awaitable[dict[str, bytes]]]
    ) -> None:
        """``snapshot`` returns the keys present at the moment it returns: the watch joins the hub without
        giving way to the loop, so that no change falls between."""
        self.prefix = prefix
        self._hub = hub
        self._snapshot = snapshot
        self._pending: dict[str, bytes | None] = {}
        self._known: set[str] = set()
        self._failure: BaseException | None = None
        self._news = asyncio.Event()
        self._closed = False

    async def __aenter__(self) -> Self:
        present = await self._snapshot()
        for key, value in present.items():
            if key.startswith(self.prefix):
                self.tell(key, value)
        self._pending[SYNCED] = None
        self._hub.join(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hub.leave(self)
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._pending:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        key = next(iter(self._pending))
        value = self._pending.pop(key)
        if value is None:
            self._known.discard(key)
        else:
            self._known.add(key)
        return Change(key, value)

    def tell(self, key: str, value: bytes | None) -> None:
        """Keep a change until it is read."""
        if value is None and key not in self._known:
            self._pending.pop(key, None)
        else:
            self._pending[key] = value
            self._news.set()

    def close(self, failure: BaseException | None = None) -> None:
        """End the iteration after what is pending, with ``failure`` if there is one."""
        self._closed = True
        self._failure = failure
        self._news.set()
