from __future__ import annotations

import pytest
from tests.decide.router.routing_cases import B, D, P, card

from tokenmill.decide.router.stages import can_hand_over, readiness


@pytest.mark.parametrize(
    ("cards", "ready", "mode"),
    [
        ([], False, "none"),
        ([card("p", P)], False, "none"),
        ([card("b", B)], True, "aggregated"),
        ([card("d", D)], True, "degraded"),
        ([card("p", P), card("d", D)], True, "disaggregated"),
        ([card("p", P), card("d", D), card("b", B)], True, "mixed"),
        ([card("p", P, fingerprint="x"), card("d", D)], True, "degraded"),
        ([card("p", P), card("b", B)], True, "aggregated"),
    ],
)
def test_readiness(cards, ready, mode):
    judged = readiness(cards)
    assert (judged.ready, judged.mode) == (ready, mode)
    assert bool(judged.notes) == (mode in ("none", "degraded"))


def test_a_handover_needs_equal_meaning_and_a_common_transport():
    assert can_hand_over(card("p", P, transports=["shm", "tcp"]), card("d", D))
    assert not can_hand_over(card("p", P, transports=["shm"]), card("d", D))
    assert not can_hand_over(card("p", P, fingerprint="other"), card("d", D))
