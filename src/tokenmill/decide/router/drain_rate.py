"""How fast the queue empties, in prompt tokens a second, lately.

Exists so that ``Retry-After`` and hopeless deadlines rest on what was measured. Its clock runs only while
something waits: what is admitted when nobody waits says how much is asked for, not how much could be done.
It must not know the queue or I/O.
"""

from __future__ import annotations

import math

_MEMORY_S = 15.0
"""What was measured so many seconds of waiting ago weighs 1/e: some tens of admissions in most plants, and
soon over when workers come or go."""

_LEAST_S = 0.5
"""No figure before so much waiting has been seen."""


class DrainRate:
    """Decayed sums of tokens and seconds; their ratio is the rate."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._at: float | None = None  # None: nothing waits

    def waits(self, waiting: bool, now: float) -> None:
        """From ``now`` on something waits for workers that are there, or nothing does."""
        self._advance(now)
        self._at = now if waiting else None

    def admitted(self, tokens: int, now: float) -> None:
        """A waiting sequence was given to a worker."""
        self._advance(now)
        self._tokens += tokens

    def per_s(self, now: float) -> float | None:
        """Return tokens a second, above 0; None before there is a figure."""
        self._advance(now)
        if self._seconds < _LEAST_S or self._tokens <= 0.0:
            return None
        return self._tokens / self._seconds

    def _advance(self, now: float) -> None:
        if self._at is None or now <= self._at:
            return
        passed_s = now - self._at
        kept = math.exp(-passed_s / _MEMORY_S)
        self._tokens *= kept
        self._seconds = self._seconds * kept + _MEMORY_S * (1.0 - kept)
        self._at = now
