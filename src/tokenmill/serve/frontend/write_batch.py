"""When streams write: at once, and no more than once in a short while.

Exists because a write costs what several tokens cost: the kernel carries each to the client's socket at
once. Tokens of a stream that was written a moment ago wait, together, for the end of that moment. A stream
whose tokens come farther apart than that never waits. One timer serves all streams, and no token looks at a
clock. It must not know what is written.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class Batched(Protocol):
    """A stream with something to write."""

    def flush(self) -> None:
        """Write what waits, if anything still does."""
        ...


class WriteBatch:
    """Shared by all streams of a frontend. ``epoch`` counts moments of ``interval_s`` seconds: a stream notes
    the one in which it wrote and gives itself to ``later`` while that lasts. What waits is bounded by what
    workers make of one stream in a moment, times the streams."""

    def __init__(self, interval_s: float) -> None:
        self.epoch = 0
        self._interval_s = interval_s
        self._waiting: list[Batched] = []
        self._ticking = False

    def wrote(self) -> int:
        """A stream writes now; returns the epoch to note. -1: no moment is kept, write each time."""
        if self._interval_s <= 0:
            return -1
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(self._interval_s, self._tick)
        return self.epoch

    def later(self, stream: Batched) -> None:
        """``flush`` the stream when the epoch ends. Once a stream and epoch."""
        self._waiting.append(stream)

    def _tick(self) -> None:
        self.epoch += 1
        self._ticking = False
        waiting, self._waiting = self._waiting, []
        for stream in waiting:
            stream.flush()
