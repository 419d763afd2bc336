"""The least loaded worker, ties broken fairly.

Exists as the policy that needs to know nothing but load. It must not know I/O or prefix caches.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenmill.decide.router.types import Candidate, Choice, RouteRequest
from tokenmill.protocol.ids import Role


@dataclass(frozen=True, slots=True)
class LoadScale:
    """How unlike loads are added up."""

    prefill_tokens: int = 8192
    """So many queued prefill tokens weigh as much as a full batch of sequences: about a second of work on the
    accelerators of today."""

    def load(self, candidate: Candidate) -> float:
        """Return the load: 0 is idle, 1 is about full in one respect. Prefill workers are compared by their
        queue alone, others by sequences and KV in use as well."""
        card, load = candidate.card, candidate.load
        prefill = load.queue_tokens / self.prefill_tokens
        if card.role is Role.PREFILL:
            return prefill
        total = load.blocks_total or card.kv_blocks
        held = load.blocks_used / total if total else 0.0
        return prefill + load.decoding / max(1, card.max_sequences) + held


_TIE = 1e-9
"""Loads closer than this are equal."""


class LeastLoaded:
    """Ties rotate, from a place that ``seed`` decides, so that several frontends do not move in step."""

    def __init__(self, *, seed: int = 0, scale: LoadScale | None = None) -> None:
        self._scale = scale or LoadScale()
        self._turn = random.Random(seed).randrange(1 << 16)

    def choose(self, candidates: Sequence[Candidate], request: RouteRequest, now: float) -> Choice:  # noqa: ARG002
        """Return the least loaded of ``candidates``. ``now`` is not needed: loads are as last reported."""
        loads = [self._scale.load(candidate) for candidate in candidates]
        limit = min(loads) + _TIE
        tied = [index for index, load in enumerate(loads) if load <= limit]
        self._turn += 1
        index = tied[self._turn % len(tied)]
        card = candidates[index].card
        reason = (
            f"{card.worker_id}: least loaded ({loads[index]:.3f}) of {len(candidates)} for {card.role.value}"
        )
        return Choice(card.worker_id, (reason,))
