"""What a double is told to do wrong, and the journal of what it was asked."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """How a double misbehaves."""

    REFUSE = "refuse"
    """Answer ``/generate`` with ``status``."""
    HANG_UP = "hang_up"
    """Close the connection after ``after`` events of a stream."""
    ABORT = "abort"
    """End a stream with an abort of ``status`` after ``after`` events."""
    HANG = "hang"
    """Say nothing on ``/generate``."""
    GARBAGE = "garbage"
    """Send an event that is no JSON."""
    SKIP_TOKEN = "skip_token"
    """Leave a token out of a stream."""
    FAIL_TRANSFER = "fail_transfer"
    """Compute a prompt, but do not get the cache through."""
    OTHER_CACHE = "other_cache"
    """Hand over a cache that was made of other tokens."""
    UNHEALTHY = "unhealthy"
    """Answer ``/health_generate`` with 503."""
    LOSE_EVENTS = "lose_events"
    """Number a KV event message, but do not send it; it can be replayed."""
    FORGET_EVENTS = "forget_events"
    """The same, and it cannot."""


class Mishap(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """To go wrong ``times`` times."""

    kind: Kind
    times: int = 1
    status: int = 500
    after: int = 1


class Journal(msgspec.Struct):
    """What came: bodies of ``/generate``, ids of ``/abort_request``, ids whose client went away, and
    everything that was refused, with the reason. It grows with every request: a double lives as long as a
    test."""

    generate: list[dict[str, object]] = []
    aborted: list[str] = []
    disconnected: list[str] = []
    refused: list[str] = []


class Mishaps:
    """What is still to go wrong."""

    def __init__(self) -> None:
        self._left: list[Mishap] = []

    def plan(self, mishap: Mishap) -> None:
        """Something is to go wrong."""
        self._left.append(mishap)

    def due(self, *kinds: Kind) -> Mishap | None:
        """Return the first of these that is still to happen, and count it."""
        for mishap in self._left:
            if mishap.kind in kinds and mishap.times > 0:
                mishap.times -= 1
                return mishap
        return None
