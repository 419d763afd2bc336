r"""Whether a server that is not ours is let alone for a while because it keeps failing. Plain object.

    CLOSED --failures in a row--> OPEN --time--> HALF_OPEN --good--> CLOSED
                                    ^                |
                                    +------bad-------+     (each time for longer)

Exists so that requests find another worker at once in place of waiting for a server that is down, and so that
it is not buried under all of them when it comes back. It must not know HTTP or clocks.
"""

from __future__ import annotations

from enum import Enum, auto

from tokenmill.protocol.metrics import Circuit


class Outcome(Enum):
    """What a request says of its server."""

    GOOD = auto()
    """It answered, if only to say what is wrong with the request."""
    BAD = auto()
    """It failed or did not answer."""
    NEITHER = auto()
    """Nobody waited for the answer, or the server is only busy."""


class CircuitBreaker:
    """Ask ``admit`` before each request, and tell what became of it. All times in seconds on one clock.

    ``failures``: so many in a row open it. ``open_s``: for how long at first; doubled while the server stays
    bad, up to ``longest_s``.
    """

    def __init__(self, *, failures: int = 5, open_s: float = 1.0, longest_s: float = 30.0) -> None:
        self.state = Circuit.CLOSED
        self._failures = failures
        self._first_open_s = open_s
        self._longest_s = longest_s
        self._open_s = open_s
        self._bad = 0
        self._until = 0.0
        self._era = 0  # of a state: what was admitted in an earlier one says nothing of this one
        self._probing = False

    def look(self, now: float) -> Circuit:
        """Return the state at ``now``; an open one becomes half open in time."""
        if self.state is Circuit.OPEN and now >= self._until:
            self._enter(Circuit.HALF_OPEN)
        return self.state

    def admit(self, now: float) -> int | None:
        """Return a ticket for one request, or None: it must not be sent."""
        state = self.look(now)
        if state is Circuit.OPEN or (state is Circuit.HALF_OPEN and self._probing):
            return None
        self._probing = state is Circuit.HALF_OPEN
        return self._era

    def tell(self, ticket: int, outcome: Outcome, now: float) -> None:
        """A request that was admitted has ended; or, if it goes on, it has got its first answer."""
        if ticket != self._era:
            return
        self._probing = False
        if outcome is Outcome.GOOD:
            self._bad = 0
            self._open_s = self._first_open_s
            if self.state is not Circuit.CLOSED:
                self._enter(Circuit.CLOSED)
        elif outcome is Outcome.BAD:
            self._bad += 1
            if self.state is Circuit.HALF_OPEN or self._bad >= self._failures:
                self._open(now)

    def left_s(self, now: float) -> float:
        """How long it stays open."""
        return max(0.0, self._until - now) if self.state is Circuit.OPEN else 0.0

    def _open(self, now: float) -> None:
        if self.state is Circuit.HALF_OPEN:
            self._open_s = min(2 * self._open_s, self._longest_s)
        self._until = now + self._open_s
        self._enter(Circuit.OPEN)

    def _enter(self, state: Circuit) -> None:
        self.state = state
        self._era += 1
        self._probing = False
        self._bad = 0
