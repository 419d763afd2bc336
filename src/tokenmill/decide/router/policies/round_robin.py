"""One worker after the other.

Exists as the yardstick that every other policy must beat. It must not know loads or prefix caches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenmill.decide.router.types import Candidate, Choice, RouteRequest


class RoundRobin:
    """Begins at a place that ``seed`` decides, so that several frontends do not move in step."""

    def __init__(self, *, seed: int = 0) -> None:
        self._turn = random.Random(seed).randrange(1 << 16)

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest, now: float) -> Choice:  # noqa: ARG002
        """Return the next of ``candidates``."""
        self._turn += 1
        worker = candidates[self._turn % len(candidates)].card.worker_id
        return Choice(worker, (f"{worker}: its turn among {len(candidates)}",))
