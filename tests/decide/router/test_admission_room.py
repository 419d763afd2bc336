from __future__ import annotations

import pytest

from tokenmill.decide.router.admission_room import Gate, PlantRoom
from tokenmill.decide.router.admission_words import BusyThresholds
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.metrics import StepMetrics

from .admission_cases import EMPTY, FULL, card

P, D, B = Role.PREFILL, Role.DECODE, Role.BOTH
R = RequestId


def plant(*roles: Role, full: tuple[int, ...] = ()) -> PlantRoom:
    made = PlantRoom(BusyThresholds())
    for index, role in enumerate(roles):
        made.worker_ready(card(f"w{index}", role))
        made.load_reported(WorkerId(f"w{index}"), FULL if index in full else EMPTY, 1.0)
    made.validate()
    return made


@pytest.mark.parametrize(
    ("roles", "full", "gate", "passed_over"),
    [
        ((), (), Gate.NONE, set()),
        ((P,), (), Gate.NONE, set()),
        ((B,), (), Gate.OPEN, set()),
        ((B,), (0,), Gate.BUSY, set()),
        ((B, B), (0,), Gate.OPEN, {"w0"}),
        ((B, B), (0, 1), Gate.BUSY, set()),
        ((D,), (), Gate.OPEN, set()),  # it does the prefill itself
        ((P, D), (), Gate.OPEN, set()),
        ((P, D), (0,), Gate.LOCAL, set()),
        ((P, D), (1,), Gate.BUSY, set()),
        ((P, P, D), (0,), Gate.OPEN, {"w0"}),
        ((P, D, D), (1,), Gate.OPEN, {"w1"}),
        ((P, D, B), (0,), Gate.OPEN, set()),
        ((P, D, B), (1,), Gate.OPEN, {"w1"}),
        ((P, D, B), (2,), Gate.OPEN, {"w2"}),
        ((P, D, B), (0, 2), Gate.LOCAL, {"w2"}),
        ((P, D, B), (1, 2), Gate.BUSY, set()),
    ],
)
def test_stages_are_judged_side_by_side(roles, full, gate, passed_over):
    made = plant(*roles, full=full)
    assert (made.gate, set(made.busy_workers)) == (gate, passed_over)


def test_a_burst_does_not_slip_through_an_old_report():
    made = plant(B)
    admitted = 0
    while made.gate is Gate.OPEN:
        made.sent(WorkerId("w0"), R(str(admitted)), 200, 200, 2.0)
        admitted += 1
    assert admitted == 8  # 1,600 tokens of room, a tenth of it to grow into


def test_a_decode_worker_keeps_room_for_what_its_prefill_worker_has():
    made = plant(P, D)
    for index in range(8):
        name = R(str(index))
        made.promised(WorkerId("w1"), WorkerId("w0"), name, 200)
        made.sent(WorkerId("w0"), name, 0, 200, 2.0)
    assert made.gate is Gate.BUSY
    made.sent(WorkerId("w1"), R("0"), 200, 0, 2.0)  # counted once
    made.ended(WorkerId("w0"), R("0"))
    assert made.gate is Gate.BUSY
    made.ended(WorkerId("w0"), R("1"))  # it never came to the decode worker
    assert made.gate is Gate.OPEN
    made.validate()


def test_a_promise_can_be_taken_back():
    made = plant(P, D)
    made.promised(WorkerId("w1"), WorkerId("w0"), R("a"), 1600)
    assert made.gate is Gate.BUSY
    made.released(R("a"))
    made.released(R("a"))
    assert made.gate is Gate.OPEN


def test_a_first_token_is_known_by_its_sequence():
    made = plant(B)
    for index in range(5):
        made.sent(WorkerId("w0"), R(str(index)), 1, 2000, 2.0)
    assert made.gate is Gate.BUSY
    made.prefilled(R("0"), 2.0)
    assert made.gate is Gate.OPEN
    made.prefilled(R("unknown"), 2.0)


def test_workers_that_are_gone_are_forgotten():
    made = plant(B, B, full=(0,))
    made.worker_gone(WorkerId("w1"))
    assert made.gate is Gate.BUSY
    made.ended(WorkerId("w1"), R("a"))
    made.sent(WorkerId("w1"), R("a"), 1, 1, 2.0)
    made.load_reported(WorkerId("w1"), EMPTY, 3.0)
    made.worker_gone(WorkerId("w1"))
    made.worker_gone(WorkerId("w0"))
    assert made.gate is Gate.NONE
    assert not made.is_busy(WorkerId("w0"))
    made.validate()


def test_a_changed_card_changes_the_room():
    made = plant(B, full=(0,))
    made.load_reported(WorkerId("w0"), StepMetrics(kv_blocks_used=95), 2.0)
    assert made.gate is Gate.BUSY
    made.worker_ready(card("w0", kv_blocks=1000))
    assert made.gate is Gate.OPEN
