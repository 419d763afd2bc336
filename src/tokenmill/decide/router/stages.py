"""Which workers can serve together: prefill and decode apart, or one worker for both.

Exists so that the rule stands in one place for the router, the frontend's readiness and the simulator. It
must not know I/O or how workers are compared.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import Role


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
