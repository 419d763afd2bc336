"""Any worker.

Exists because it needs no state at all, and as a yardstick. It must not know loads or prefix caches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tokenmill.decide.router.types import Candidate, Choice, RouteRequest


class RandomWorker:
    """``seed``: of the draw."""

    def __init__(self, *, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest, now: float) -> Choice:  # noqa: ARG002
        """Return one of ``candidates``, each as likely."""
        worker = candidates[self._random.randrange(len(candidates))].card.worker_id
        return Choice(worker, (f"{worker}: drawn from {len(candidates)}",))
