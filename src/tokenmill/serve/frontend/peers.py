"""The other frontends of the factory: found in the registry, told what is routed here, heard by links.

Exists so that several frontends choose workers as one would. What one routes the others know after at most
``interval_s``, plus the way of one message and one turn of each event loop; until then two of them may pick
the same worker that seems idle to both. Nothing here is waited for by a request, and nothing that is lost
does lasting harm: the workers' reports are the truth, notes only bridge the time between two of them. It must
not know what a note means.

With one frontend there is a listening socket and a key in the registry, and nothing runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.protocol.frontends import (
    FRONTENDS_PREFIX,
    FrontendCard,
    FrontendId,
    Notes,
    SubscribeNotes,
)
from tokenmill.protocol.router_sync import PredictedNote, RouteNote
from tokenmill.serve.fabric.announcement import Announcement
from tokenmill.serve.fabric.registry import SYNCED, Change, Registry
from tokenmill.serve.fabric.streams import ServerStream, StreamServer
from tokenmill.serve.frontend.peer_link import NoteExchange, PeerCounts, PeerLink

_log = structlog.get_logger(__name__)

MAX_WAITING_NOTES: Final = 4096
"""Most notes that wait for one peer that does not keep up: two seconds at a thousand requests a second."""

MAX_WAITING_NAMES: Final = 131_072
"""Most block names in them: about 1.2 MB."""

Stream = ServerStream[SubscribeNotes, Notes]


class Peers:
    """``start`` it, tell it when something was ``routed``, ``close`` it. All methods belong to the loop's
    thread."""

    def __init__(
        self,
        registry: Registry,
        router: NoteExchange,
        clock: Clock,
        *,
        frontend_id: FrontendId,
        interval_s: float,
        ttl_s: float,
    ) -> None:
        self.frontend_id = frontend_id
        self.address = ""
        """Where it listens, once it is started."""
        self.counts = PeerCounts()
        self._registry = registry
        self._router = router
        self._clock = clock
        self._interval_s = interval_s
        self._ttl_s = ttl_s
        self._announcement = Announcement(registry, FRONTENDS_PREFIX + frontend_id, ttl_s)
        self._card = b""
        self._server = StreamServer[SubscribeNotes, Notes](
            SubscribeNotes, Notes, self._opened, merge=merge_notes, name=frontend_id
        )
        self._listeners: dict[int, Stream] = {}
        self._links: dict[str, PeerLink] = {}
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self._last_flush = float("-inf")
        self._since = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self, address: str) -> None:
        """Listen for peers. Raises ConfigError. Cancelled: ``close`` it."""
        self.address = await self._server.start(address)

    async def announce(self, card: FrontendCard) -> None:
        """Let others find this frontend, and look for them from now on. Raises ServiceError.

        Cancelled: ``close`` it.
        """
        self._card = msgspec.json.encode(card)
        await self._announcement.say(self._card)
        self._task = asyncio.create_task(self._run(), name="peers")
        self._task.add_done_callback(_complain)

    async def close(self) -> None:
        """Leave the registry and close all connections. Cancelled: call it again."""
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        await self._announcement.withdraw()
        await self._server.close(grace_s=0)

    def links(self) -> Iterable[PeerLink]:
        """The other frontends that are known."""
        return tuple(self._links.values())

    # Telling -------------------------------------------------------------------------------------------

    def routed(self) -> None:
        """The router has something to tell. Costs nothing to speak of where nobody listens."""
        if self._timer is None and self._listeners:
            loop = asyncio.get_running_loop()
            self._since = self._clock.wall()
            delay_s = self._last_flush + self._interval_s - self._clock.now()
            self._timer = loop.call_later(max(0.0, delay_s), self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._last_flush = self._clock.now()
        notes = self._router.drain_notes()
        if not notes or not self._listeners:
            return
        item = Notes(self._number, notes, self._since)
        self._number += len(notes)
        self.counts.notes_sent += len(notes) * len(self._listeners)
        for stream in tuple(self._listeners.values()):
            stream.send(item)
        self._server.flush()

    def _opened(self, stream: Stream) -> None:
        self._router.send_notes = True
        key = id(stream)
        self._listeners[key] = stream
        stream.on_cancel = lambda: self._closed(key)

    def _closed(self, key: int) -> None:
        self._listeners.pop(key, None)
        if not self._listeners:
            self._router.send_notes = False
            self._router.drain_notes()

    # Hearing -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group, self._registry.watch(FRONTENDS_PREFIX) as changes:
            group.create_task(self._stay_announced(), name="announcement")
            async for change in changes:
                if change.key != SYNCED:
                    self._apply(change, group)

    async def _stay_announced(self) -> None:
        while True:
            await asyncio.sleep(self._ttl_s / 2)
            if self._announcement.lost:
                await self._announcement.try_to_say(self._card)

    def _apply(self, change: Change, group: asyncio.TaskGroup) -> None:
        if change.key == FRONTENDS_PREFIX + self.frontend_id:
            return
        link = self._links.get(change.key)
        if change.value is None:
            if link is not None:
                link.retire()
            return
        try:
            card = msgspec.json.decode(change.value, type=FrontendCard)
        except msgspec.DecodeError as error:
            _log.warning("frontend card cannot be read", key=change.key, error=str(error))
            return
        if link is not None and not link.retired and link.card.address == card.address:
            return
        if link is not None:
            link.retire()
        link = PeerLink(card, self.frontend_id, self._router, self._clock, self.counts)
        self._links[change.key] = link
        group.create_task(self._hear(change.key, link), name=f"peer {card.frontend_id}")

    async def _hear(self, key: str, link: PeerLink) -> None:
        """Run one link. Cancelled: its connection is closed."""
        try:
            await link.run()
        finally:
            if self._links.get(key) is link:
                del self._links[key]


def merge_notes(older: Notes, newer: Notes) -> Notes | None:
    """Join two items that wait for a peer that does not keep up; None where they do not follow each other.

    Bound: beyond ``MAX_WAITING_NOTES`` or ``MAX_WAITING_NAMES`` what waits is dropped for an empty item whose
    number lies ahead, which the peer sees as a gap.
    """
    if older.first + len(older.notes) != newer.first:
        return None
    notes = [*older.notes, *newer.notes]
    if len(notes) > MAX_WAITING_NOTES or _names(notes) > MAX_WAITING_NAMES:
        return Notes(newer.first + len(newer.notes), [], newer.since)
    return Notes(older.first, notes, older.since)


def _names(notes: list[RouteNote]) -> int:
    return sum(len(note.names) for note in notes if isinstance(note, PredictedNote))


def _complain(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("other frontends are not heard any more", error=repr(error))
