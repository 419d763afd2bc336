"""The less loaded of two workers drawn at random.

Exists because it balances nearly as well as asking all, and several frontends with old facts do not all run
to the same worker (Mitzenmacher, "The power of two choices in randomized load balancing", 2001). It must not
know I/O or prefix caches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenmill.decide.router.policies.least_loaded import LoadScale
from tokenmill.decide.router.types import Candidate, Choice, RouteRequest


class PowerOfTwo:
    """``seed``: of the draw."""

    def __init__(self, *, seed: int = 0, scale: LoadScale | None = None) -> None:
        self._random = random.Random(seed)
        self._scale = scale or LoadScale()

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest, now: float) -> Choice:  # noqa: ARG002
        """Return the less loaded of two of ``candidates``, the first drawn where they are equal."""
        drawn = self._random.sample(range(len(candidates)), min(2, len(candidates)))
        taken = min((candidates[index] for index in drawn), key=self._scale.load)
        worker = taken.card.worker_id
        return Choice(worker, (f"{worker}: less loaded of {len(drawn)} drawn from {len(candidates)}",))
