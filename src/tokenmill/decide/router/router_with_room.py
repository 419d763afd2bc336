"""A router that lets admission know the same facts.

Exists so that whoever feeds a router need not know that there is an admission. It must not know the queue.
"""

from __future__ import annotations

from tokenmill.decide.router.admission_room import PlantRoom
from tokenmill.decide.router.router import PolicyMaker, Router
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.metrics import StepMetrics


class RouterWithRoom(Router):
    """Tells ``room`` what it is told."""

    def __init__(
        self, settings: RouterSettings, room: PlantRoom, *, seed: int, policy: PolicyMaker | None = None
    ) -> None:
        super().__init__(settings, seed=seed, policy=policy)
        self._room = room

    def worker_ready(self, card: WorkerCard) -> None:
        """A worker came, or its card changed; it may be chosen."""
        super().worker_ready(card)
        self._room.worker_ready(card)

    def worker_gone(self, worker: WorkerId) -> None:
        """A worker may not be chosen any more."""
        super().worker_gone(worker)
        self._room.worker_gone(worker)

    def load_reported(self, worker: WorkerId, metrics: StepMetrics, now: float) -> None:
        """A worker told its load."""
        super().load_reported(worker, metrics, now)
        self._room.load_reported(worker, metrics, now)

    def sent(
        self, worker: WorkerId, request_id: RequestId, prefill_tokens: int, now: float, tokens: int = 0
    ) -> None:
        """A stream was opened to a worker, which must compute ``prefill_tokens`` of ``tokens``."""
        super().sent(worker, request_id, prefill_tokens, now, tokens)
        if not self.knows_caches:
            prefill_tokens = self._room.likely_computed(worker, prefill_tokens)
        # A decode worker computes none of the prompt and needs room for all of it.
        self._room.sent(worker, request_id, prefill_tokens or tokens, prefill_tokens, now)

    def ended(self, worker: WorkerId, request_id: RequestId) -> None:
        """A stream to a worker is over, one way or the other."""
        super().ended(worker, request_id)
        self._room.ended(worker, request_id)
