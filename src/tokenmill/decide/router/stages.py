"""Which stages serve a request: prefill and decode apart, or one worker for both.

Exists so that the rule stands in one place for the frontend, its readiness and the simulator. It must not
know I/O or how a policy compares workers.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet

import msgspec

from tokenmill.decide.router.types import Candidate, Decision, RouteRequest, RouterPolicy
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import Role, WorkerId


class Readiness(msgspec.Struct, frozen=True):
    """Whether requests can be served, and what is not as it should be."""

    ready: bool
    mode: str
    """disaggregated, aggregated, mixed, degraded or none."""
    notes: tuple[str, ...] = ()


def can_hand_over(prefill: WorkerCard, decode: WorkerCard) -> bool:
    """Whether ``decode`` can take a KV cache made by ``prefill``: same meaning, and a transport in common."""
    return prefill.fingerprint == decode.fingerprint and not set(prefill.transports).isdisjoint(
        decode.transports
    )


def readiness(cards: Iterable[WorkerCard]) -> Readiness:
    """Judge the workers that are ready."""
    workers = list(cards)
    prefill = [card for card in workers if card.role is Role.PREFILL]
    decode = [card for card in workers if card.role is Role.DECODE]
    both = [card for card in workers if card.role is Role.BOTH]
    paired = any(can_hand_over(giver, taker) for giver in prefill for taker in decode)
    if paired:
        return Readiness(True, "mixed" if both else "disaggregated")
    if decode:
        note = (
            "prefill and decode workers cannot exchange KV caches (transports or models differ)"
            if prefill
            else "no prefill worker is ready"
        )
        return Readiness(True, "degraded", (f"{note}: decode workers do the prefill themselves",))
    if both:
        return Readiness(True, "aggregated")
    note = "no decode worker is ready" if prefill else "no worker is ready"
    return Readiness(False, "none", (note,))


class StageRouter:
    """Chooses the decode side first, which holds the request longest, then a prefill worker that fits it."""

    def __init__(self, policy: RouterPolicy) -> None:
        self._policy = policy

    def choose(
        self,
        candidates: Iterable[Candidate],
        request: RouteRequest,
        now: float,
        excluded: AbstractSet[WorkerId] = frozenset(),
    ) -> Decision | None:
        """Return who serves ``request``, or None when nobody can."""
        prefill: list[Candidate] = []
        decode: list[Candidate] = []
        for candidate in candidates:
            if candidate.card.worker_id in excluded:
                continue
            (prefill if candidate.card.role is Role.PREFILL else decode).append(candidate)
        if not decode:
            return None
        taken = self._policy.choose(decode, request, now)
        card = next(item.card for item in decode if item.card.worker_id == taken.worker)
        if card.role is Role.BOTH:
            return Decision(taken.worker, None, taken.reasons)
        givers = [item for item in prefill if can_hand_over(item.card, card)]
        if not givers:
            reasons = (*taken.reasons, "no prefill worker can hand over to it: it does the prefill itself")
            return Decision(taken.worker, None, reasons)
        given = self._policy.choose(givers, request, now)
        return Decision(taken.worker, given.worker, (*taken.reasons, *given.reasons))
