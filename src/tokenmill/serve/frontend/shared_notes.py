"""Several routers as one, for the other frontends: what any of them did, all of them are told.

Exists so that frontends of several models speak over one connection. A worker's name says whose note it is: a
router ignores notes about workers that it does not know. It must not know what a note means.
"""

from __future__ import annotations

from tokenmill.protocol.router_sync import RouteNote
from tokenmill.serve.frontend.peer_link import NoteExchange


class SharedNotes:
    """``NoteExchange`` of several routers."""

    def __init__(self, routers: list[NoteExchange]) -> None:
        self._routers = routers

    @property
    def send_notes(self) -> bool:
        """Whether notes are kept for ``drain_notes``."""
        return any(router.send_notes for router in self._routers)

    @send_notes.setter
    def send_notes(self, value: bool) -> None:
        for router in self._routers:
            router.send_notes = value

    def drain_notes(self) -> list[RouteNote]:
        """Return what they did since the last call."""
        return [note for router in self._routers for note in router.drain_notes()]

    def peer_said(self, peer: str, notes: list[RouteNote], now: float) -> None:
        """Take what a peer did into account."""
        for router in self._routers:
            router.peer_said(peer, notes, now)

    def peer_gone(self, peer: str) -> None:
        """Forget what a peer had under way."""
        for router in self._routers:
            router.peer_gone(peer)
