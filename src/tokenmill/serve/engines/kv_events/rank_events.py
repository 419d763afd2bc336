"""The KV events of one server, all its data-parallel ranks together.

Exists so that an engine opens and closes one thing. It must not know who listens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import msgspec
import zmq

from tokenmill.protocol.kv_events import KvEvent
from tokenmill.serve.engines.kv_events.feed import RankFeed
from tokenmill.serve.engines.kv_events.rank_caches import RankCaches


class EventSource(msgspec.Struct, frozen=True):
    """Where one data-parallel rank tells its KV events: ZMQ endpoints."""

    events: str
    replay: str | None = None


class RankEvents:
    """``read`` the ranks' events, ``close`` it. ``tell`` hears what they mean for the server as a whole;
    ``caches``: what each rank has."""

    def __init__(self, ranks: int, tell: Callable[[list[KvEvent]], None]) -> None:
        self.caches = RankCaches(ranks)
        self._tell = tell
        self._feeds: list[RankFeed] = []
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def read(self, sources: Sequence[EventSource]) -> None:
        """Subscribe to every rank's, and ask for what was said before."""
        if not sources:
            return
        self._context = zmq.Context()
        for rank, source in enumerate(sources):
            feed = RankFeed(self._context, source.events, source.replay, partial(self._heard, rank))
            feed.start(from_now=False)
            self._feeds.append(feed)

    async def close(self) -> None:
        """Read no more. Cancelled: call it again."""
        for feed in self._feeds:
            await feed.close()
        self._feeds = []
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None

    def _heard(self, rank: int, events: list[KvEvent]) -> None:
        told = self.caches.apply(rank, events)
        if told:
            self._tell(told)
