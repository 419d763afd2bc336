"""Which workers can serve together: prefill and decode apart, or one worker for both.

Exists so that the rule stands in one place for the router, the frontend's readiness and the simulator. It
must not know I/O or how workers are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.handoffs import can_hand_over, side_of, why_not
from tokenmill.protocol.ids import Role


class Readiness(msgspec.Struct, frozen=True):
    """Whether requests can be served, and what is not as it should be."""

    ready: bool
    mode: str
    """disaggregated, aggregated, mixed, degraded or none."""
    notes: tuple[str, ...] = ()


def readiness(cards: Iterable[WorkerCard]) -> Readiness:
    """Judge the workers that are ready."""
    workers = list(cards)
    prefill = [card for card in workers if card.role is Role.PREFILL]
    decode = [card for card in workers if card.role is Role.DECODE]
    both = [card for card in workers if card.role is Role.BOTH]
    paired = any(can_hand_over(giver, taker) for giver in prefill for taker in decode)
    if paired:
        return Readiness(True, "mixed" if both else "disaggregated")
    if any(card.alone for card in decode):
        # The first pair stands for all: stages are few, and one reason is what a person can mend.
        note = why_not(side_of(prefill[0]), side_of(decode[0])) if prefill else "no prefill worker is ready"
        return Readiness(True, "degraded", (f"{note}: decode workers do the prefill themselves",))
    if both:
        return Readiness(True, "aggregated")
    note = "no decode worker is ready" if prefill else "no worker is ready"
    if decode:
        note = why_not(side_of(prefill[0]), side_of(decode[0])) if prefill else "no prefill worker is ready"
        note += ", and the decode workers' engine cannot do without"
    return Readiness(False, "none", (note,))
