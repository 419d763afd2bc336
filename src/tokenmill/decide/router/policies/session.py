"""The worker that a conversation always goes to.

Exists for clients that name their conversation: its prefix is cached where it was before, and no index is
needed to know where. It must not know I/O or prefix caches.
"""

from __future__ import annotations

from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from tokenmill.decide.router.policies.least_loaded import LeastLoaded, LoadScale
from tokenmill.decide.router.types import Candidate, Choice, RouteRequest

OVERLOADED = 1.0
"""At this load (one respect about full) or below, a worker keeps its sessions."""

FACTOR = 2.0
"""Above ``OVERLOADED`` it keeps them while it is at most so many times as loaded as the average: when all are
full, moving a conversation gains nothing."""


class Session:
    """Rendezvous hashing: each worker draws a number for each session, and the highest has it. So all
    frontends agree without talking, a worker's end moves only its own sessions, and nothing is remembered.
    Requests without a session go to the least loaded."""

    def __init__(self, *, seed: int = 0, scale: LoadScale | None = None) -> None:
        self._scale = scale or LoadScale()
        self._others = LeastLoaded(seed=seed, scale=scale)

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest, now: float) -> Choice:
        """Return the session's worker among ``candidates``, or its next one where that is overloaded."""
        if not request.session:
            return self._others.choose(candidates, request, now)
        key = xxh3_64_intdigest(request.session.encode())
        ranked = sorted(
            candidates,
            key=lambda each: xxh3_64_intdigest(each.card.worker_id.encode(), seed=key),
            reverse=True,
        )
        loads = [self._scale.load(each) for each in ranked]
        limit = max(OVERLOADED, FACTOR * sum(loads) / len(loads))
        rank = next((rank for rank, load in enumerate(loads) if load <= limit), 0)
        worker = ranked[rank].card.worker_id
        passed = f", {rank} overloaded before it" if rank else ""
        return Choice(worker, (f"{worker}: has the session{passed}",))
