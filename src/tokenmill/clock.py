"""The only module that reads a clock.

Decision objects take ``now`` as an argument; shells take a ``Clock``. That is what lets the
simulator and the tests run the very same objects under virtual time.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where a shell gets the time from."""

    def now(self) -> float:
        """Seconds on a clock that never goes back; its zero means nothing."""
        ...

    def wall(self) -> float:
        """Seconds since 1970-01-01 UTC, for people and for records that outlive the process."""
        ...


class Sleeper(Protocol):
    """How a thread that plays a device waits."""

    def sleep(self, duration_s: float) -> None:
        """Block this thread for ``duration_s`` seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    now = staticmethod(time.monotonic)
    """Shared by all processes of one Linux host. The bare function: it is called for every token."""

    def wall(self) -> float:
        """Return ``time.time()``."""
        return time.time()

    def sleep(self, duration_s: float) -> None:
        """Block this thread."""
        time.sleep(duration_s)


class VirtualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, start: float = 0.0) -> None:
        self._now = start

    def now(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def wall(self) -> float:
        """Return the virtual time in seconds: a simulated run has no other."""
        return self._now

    def advance_to(self, instant: float) -> None:
        """Move to ``instant``; raises ValueError if that is in the past."""
        if instant < self._now:
            raise ValueError(f"virtual time cannot go back from {self._now} to {instant}")
        self._now = instant
