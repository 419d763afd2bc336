"""Hearing one other frontend: connected as long as its card is there, its notes carried to our router.

Exists so that connecting, gaps and the loss of a peer stand in one place for each peer. It must not know what
a note means or what we tell others.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError
from tokenmill.protocol.frontends import FrontendCard, FrontendId, Notes, SubscribeNotes
from tokenmill.protocol.router_sync import RouteNote
from tokenmill.serve.fabric.streams import StreamConnection
from tokenmill.serve.frontend.metrics import SECONDS_BOUNDS, Histogram

_log = structlog.get_logger(__name__)

_FIRST_BACKOFF_S = 0.05
_LONGEST_BACKOFF_S = 2.0
_CONNECT_TIMEOUT_S = 5.0


class NoteExchange(Protocol):
    """What peers need of a router. ``send_notes``: whether it keeps notes for ``drain_notes``."""

    send_notes: bool

    def drain_notes(self) -> list[RouteNote]:
        """Return what it did since the last call."""
        ...

    def peer_said(self, peer: str, notes: list[RouteNote], now: float) -> None:
        """Take what a peer did into account."""
        ...

    def peer_gone(self, peer: str) -> None:
        """Forget what a peer had under way."""
        ...


class PeerCounts:
    """What passed between this frontend and the others. Totals since the start, but for ``connected``."""

    def __init__(self) -> None:
        self.connected = 0
        self.notes_sent = 0
        self.notes_received = 0
        self.notes_dropped = 0
        """Notes of others that never arrived because we, or the way, were too slow."""
        self.lag = Histogram(SECONDS_BOUNDS)
        """From a peer's routing until our router knew; between machines with their clocks' difference."""


class PeerLink:
    """One peer. ``run`` it; ``retire`` it when its card is gone."""

    def __init__(
        self, card: FrontendCard, own_id: FrontendId, router: NoteExchange, clock: Clock, counts: PeerCounts
    ) -> None:
        self.card = card
        self.connected = False
        self._own_id = own_id
        self._router = router
        self._clock = clock
        self._counts = counts
        self._expected: int | None = None
        self.retired = False
        """Its card is gone, and so will the link be."""
        self._over = asyncio.Event()  # the stream has ended, or is no longer needed

    def retire(self) -> None:
        """Its card is gone: let go."""
        self.retired = True
        self._over.set()

    async def run(self) -> None:
        """Stay connected until retired. Cancelled: the connection is closed and the peer forgotten."""
        backoff_s = _FIRST_BACKOFF_S
        while not self.retired:
            self._over.clear()
            try:
                connection = await StreamConnection[SubscribeNotes, Notes].connect(
                    self.card.address,
                    SubscribeNotes,
                    Notes,
                    connect_timeout_s=_CONNECT_TIMEOUT_S,
                    name=self._own_id,
                )
            except TokenmillError as error:
                _log.debug("cannot reach peer", peer=self.card.frontend_id, error=error.message)
            else:
                if await self._stay(connection):
                    backoff_s = _FIRST_BACKOFF_S
            if not self.retired:
                await self._rest(backoff_s)
                backoff_s = min(2 * backoff_s, _LONGEST_BACKOFF_S)

    async def _rest(self, backoff_s: float) -> None:
        """Wait before the next attempt, but no longer than the peer's card is there."""
        try:
            async with asyncio.timeout(backoff_s):
                await self._over.wait()
        except TimeoutError:
            pass

    async def _stay(self, connection: StreamConnection[SubscribeNotes, Notes]) -> bool:
        """Listen until the end; return whether anything was heard."""
        received = self._counts.notes_received
        self._expected = None
        self.connected = True
        self._counts.connected += 1
        try:
            if not self.retired:
                connection.open(SubscribeNotes(self._own_id), self._on_notes, self._on_end)
                await self._over.wait()
        finally:
            self.connected = False
            self._counts.connected -= 1
            self._router.peer_gone(self.card.frontend_id)
            await connection.close()
        return self._counts.notes_received > received

    def _on_notes(self, item: Notes) -> None:
        counts, peer = self._counts, self.card.frontend_id
        if self._expected is not None and item.first != self._expected:
            # Ends that were lost would count as load for ever: what is under way there is forgotten instead,
            # and what the workers report makes it good.
            counts.notes_dropped += max(0, item.first - self._expected)
            self._router.peer_gone(peer)
        self._expected = item.first + len(item.notes)
        counts.notes_received += len(item.notes)
        counts.lag.observe(max(0.0, self._clock.wall() - item.since))
        self._router.peer_said(peer, item.notes, self._clock.now())

    def _on_end(self, error: TokenmillError | None) -> None:
        _log.debug("peer ended", peer=self.card.frontend_id, error=error and error.message)
        self._over.set()
