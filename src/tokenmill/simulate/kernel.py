"""The virtual clock's heap: what is due, in an order that is the same in every run.

Things due at one instant go by kind, then by whom they are for, then in the order in which they were put on:
so the result does not depend on when something was foreseen. It must not know what anything means.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

ARRIVAL: Final = -1
"""Requests of the trace: they come before all else that is due at their instant."""
SCENE: Final = 0
STEP: Final = 1
"""The end of a worker's step. What comes before it in this list finds the step under way, the rest ended."""
TRANSFER: Final = 2
OFFER: Final = 3
FRONT: Final = 4
WAKE: Final = 5
"""A worker that stands still looks for work, when all that is due at this instant has come."""
REPORT: Final = 6
SAMPLE: Final = 7

Due = tuple[float, int, int, int, Callable[[int], None], int]


class Kernel:
    """``now``: seconds. ``kind``: of what is happening."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kind = ARRIVAL
        self._due: list[Due] = []
        self._serial = 0

    def at(self, instant: float, kind: int, whom: int, act: Callable[[int], None], number: int = 0) -> None:
        """Call ``act(number)`` at ``instant``. ``whom``: a number of its own for whoever it concerns."""
        self._serial += 1
        heapq.heappush(self._due, (instant, kind, whom, self._serial, act, number))

    @property
    def idle(self) -> bool:
        """Nothing is due."""
        return not self._due

    def run_until(self, instant: float) -> None:
        """Let happen what is due before ``instant``, then be there, before what is due just then."""
        due, pop = self._due, heapq.heappop
        while due and due[0][0] < instant:
            self.now, self.kind, _, _, act, number = pop(due)
            act(number)
        self.now, self.kind = instant, ARRIVAL

    def run_out(self, most: int) -> bool:
        """Let the next ``most`` things happen; False when nothing is left."""
        due, pop = self._due, heapq.heappop
        for _ in range(most):
            if not due:
                return False
            self.now, self.kind, _, _, act, number = pop(due)
            act(number)
        return True
