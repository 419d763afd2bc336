"""The least loaded worker, ties broken fairly.

Exists as the policy that needs to know nothing but load. It must not know I/O or prefix caches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tokenmill.decide.router.load import WorkerLoad
from tokenmill.decide.router.types import Candidate, Choice, RouteRequest
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import Role


@dataclass(frozen=True, slots=True)
class LeastLoadedConfig:
    """How unlike loads are added up."""

    prefill_scale_tokens: int = 8192
    """So many queued prefill tokens weigh as much as a full batch of sequences: about a second of work on the
    accelerators of today."""

    tie: float = 1e-9
    """Loads closer than this are equal."""


class LeastLoaded:
    """Least prefill queue for prefill workers; for others least sequences, KV in use and prefill queue.

    Ties rotate, from a place that ``seed`` decides, so that several frontends do not move in step.
    """

    def __init__(self, *, seed: int = 0, config: LeastLoadedConfig | None = None) -> None:
        self._config = config or LeastLoadedConfig()
        self._turn = random.Random(seed).randrange(1 << 16)

    def choose(self, candidates: list[Candidate], request: RouteRequest, now: float) -> Choice:  # noqa: ARG002
        """Return the least loaded of ``candidates``. ``now`` is not needed: loads are as last reported."""
        loads = [self.load(candidate) for candidate in candidates]
        limit = min(loads) + self._config.tie
        tied = [index for index, load in enumerate(loads) if load <= limit]
        self._turn += 1
        index = tied[self._turn % len(tied)]
        card = candidates[index].card
        reason = (
            f"{card.worker_id}: least loaded ({loads[index]:.3f}) of {len(candidates)} for {card.role.value}"
        )
        return Choice(card.worker_id, (reason,))

    def load(self, candidate: Candidate) -> float:
        """Return the load: 0 is idle, 1 is about full in one respect."""
        card, load = candidate.card, candidate.load
        metrics = load.metrics
        queue_tokens = metrics.waiting_prefill_tokens + load.sent_prefill_tokens
        prefill = queue_tokens / self._config.prefill_scale_tokens
        if card.role is Role.PREFILL:
            return prefill
        return prefill + _sequences(card, load) + _kv_used(card, load)


def _sequences(card: WorkerCard, load: WorkerLoad) -> float:
    metrics = load.metrics
    count = metrics.running + metrics.waiting + metrics.receiving + load.sent_sequences
    return count / max(1, card.max_sequences)


def _kv_used(card: WorkerCard, load: WorkerLoad) -> float:
    total = load.metrics.kv_blocks_total or card.kv_blocks
    return load.metrics.kv_blocks_used / total if total else 0.0
