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
        ([card("d", D, alone=False)], False, "none"),
        ([card("p", P, alone=False), card("d", D, alone=False)], True, "disaggregated"),
        ([card("p", P, fingerprint="x"), card("d", D, alone=False)], False, "none"),
        ([card("d", D, alone=False), card("b", B)], True, "aggregated"),
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


def vllm(name, role, version, transport="vllm"):
    return card(name, role, engine=f"vllm {version}", transports=[transport], fingerprint="m float32")


def test_the_table_of_handoffs_holds_at_run_time_too():
    assert can_hand_over(vllm("p", P, "0.32.0"), vllm("d", D, "0.32.0"))
    assert not can_hand_over(vllm("p", P, "0.31.0"), vllm("d", D, "0.32.0"))
    assert not can_hand_over(vllm("p", P, "0.32.0"), vllm("d", D, "0.32.0", "vllm-tokenmill"))
    assert not can_hand_over(card("p", P, engine="sim"), card("d", D, engine="torch"))
    assert not can_hand_over(card("p", P, block_tokens=32, engine="sim"), card("d", D, engine="sim"))
    assert not can_hand_over(card("p", P, fingerprint=""), card("d", D))


def test_who_does_not_fit_is_told_with_both_stages_and_the_fix():
    (note,) = readiness([vllm("p", P, "0.31.0"), vllm("d", D, "0.32.0")]).notes
    assert note.startswith(
        "stage prefill (vllm 0.31.0) cannot hand its KV cache over to stage decode (vllm 0.32.0)"
    )
    assert "give both the same version" in note
