"""Frontend -> registry: who I am. Frontend -> frontend: what I routed.

Exists so that the frontends of one factory find each other and share what their routers do. It must not know
what a note means to a router.
"""

from __future__ import annotations

from typing import NewType

import msgspec

from tokenmill.protocol.router_sync import RouteNote

FrontendId = NewType("FrontendId", str)
"""One frontend for as long as its process lives."""

FRONTENDS_PREFIX = "frontends/"
"""Registry keys of cards are this plus the frontend's id."""


class FrontendCard(msgspec.Struct, frozen=True, kw_only=True):
    """What other frontends, and people, must know of one. Stored as JSON.

    ``address``: "unix:/path" or "tcp://host:port" where it tells its notes. ``url``: where HTTP reaches it
    alone, else the address that it shares.
    """

    frontend_id: FrontendId
    address: str
    url: str = ""
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    version: str = ""


class SubscribeNotes(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Send ``Notes`` until cancelled. ``frontend_id``: of the asker."""

    frontend_id: FrontendId


class Notes(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """What a frontend's router did, in order.

    ``first``: the number of the first note; numbers grow by one a note, so that a reader sees a gap where
    notes were dropped. ``since``: when the oldest of them was made at the earliest, seconds since 1970.
    """

    first: int
    notes: list[RouteNote]
    since: float
