from __future__ import annotations

import pytest

from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.admission_words import (
    AdmissionSettings,
    Arrived,
    PassedOver,
    Place,
    Placed,
    RefusedFor,
    RoomChanged,
    TimePassed,
    WorkersChanged,
)
from tokenmill.protocol.ids import RequestId, WorkerId

from .admission_cases import EMPTY, Desk, card


def arrived(name: str, tokens: int = 10, **fields) -> Arrived:
    return Arrived(request_id=RequestId(name), tokens=tokens, **fields)


def test_nobody_waits_while_there_is_room():
    assert Desk(busy=False).admission.open
    assert not Desk(busy=True).admission.open


def test_who_waits_goes_when_there_is_room_in_order_of_arrival():
    desk = Desk()
    for name in "abc":
        assert desk.arrive(name) == []
    assert desk.admit(2) == ["a", "b"]
    assert not desk.admission.open
    assert desk.admit(5) == ["c"]
    desk.set_busy(False)
    assert desk.admission.open


def test_newcomers_do_not_pass_who_waits():
    desk = Desk()
    desk.arrive("a")
    desk.set_busy(False)
    assert not desk.admission.open


def test_a_higher_priority_goes_first():
    desk = Desk()
    desk.arrive("low", priority=-1)
    desk.arrive("usual")
    desk.arrive("high", priority=5)
    desk.arrive("high2", priority=5)
    assert desk.admit(4) == ["high", "high2", "usual", "low"]


def test_priorities_beyond_the_bound_count_as_the_bound():
    desk = Desk()
    desk.arrive("a", priority=10**6)
    desk.arrive("b", priority=100)
    desk.arrive("c", priority=2**62)
    assert desk.admit(3) == ["a", "b", "c"]


def test_a_level_that_was_passed_over_for_long_gets_a_turn():
    desk = Desk(level_turn_s=5.0, max_wait_s=100.0)
    desk.arrive("low")
    for index in range(10):
        desk.arrive(f"high{index}", priority=1)
    assert desk.admit(1) == ["high0"]
    desk.wait(5.1)
    assert desk.admit(3) == ["low", "high1", "high2"]


def test_within_a_tenant_the_earliest_deadline_goes_first():
    desk = Desk(max_wait_s=30.0)
    desk.arrive("patient", deadline_at=desk.now + 100)
    desk.arrive("none")
    desk.arrive("urgent", deadline_at=desk.now + 3)
    desk.arrive("soon", deadline_at=desk.now + 10)
    assert desk.admit(4) == ["urgent", "soon", "patient", "none"]


def test_tenants_take_turns_by_tokens():
    desk = Desk()
    for index in range(6):
        desk.arrive(f"a{index}", 20, tenant="a")
    for index in range(6):
        desk.arrive(f"b{index}", 10, tenant="b")
    first = desk.admit(6)
    assert sorted(first) == ["a0", "a1", "b0", "b1", "b2", "b3"]


def test_a_tenant_of_twice_the_weight_gets_twice_the_tokens():
    desk = Desk(tenant_weights={"a": 2.0})
    for index in range(20):
        desk.arrive(f"a{index}", tenant="a")
        desk.arrive(f"b{index}", tenant="b")
    names = desk.admit(15)
    assert len([name for name in names if name[0] == "a"]) == 10


def test_output_tokens_are_charged_when_they_are_known():
    desk = Desk()
    for index in range(6):
        desk.arrive(f"a{index}", tenant="a")
        desk.arrive(f"b{index}", tenant="b")
    assert desk.admit(2) == ["a0", "b0"]
    desk.end("a0", output_tokens=15)  # as much as three prompts of ten
    desk.end("b0")
    assert desk.admit(4) == ["b1", "b2", "b3", "a1"]


def test_cached_tokens_are_charged_less():
    desk = Desk()
    desk.arrive("a", 100, tenant="a")
    desk.arrive("a2", 100, tenant="a")
    desk.arrive("b", 100, tenant="b")
    desk.arrive("b2", 100, tenant="b")
    desk.admit(2, cached=90)
    assert desk.admission.service_of("a") == pytest.approx(10 + 0.1 * 90)


def test_nobody_saves_up_while_away():
    desk = Desk(max_wait_s=1e6)
    for index in range(30):
        desk.arrive(f"a{index}", tenant="a")
    desk.admit(20)
    for index in range(10):
        desk.arrive(f"b{index}", tenant="b")
    names = desk.admit(10)
    assert len([name for name in names if name[0] == "a"]) == 5


def test_a_full_queue_refuses_the_newest_of_who_fills_it():
    desk = Desk(max_queued=4)
    for index in range(4):
        desk.arrive(f"big{index}", tenant="big")
    assert [refusal.request_id for refusal in desk.arrive("small", tenant="small")] == ["big3"]
    assert desk.refused["big3"].reason is RefusedFor.EVICTED
    desk.arrive("big4", tenant="big")
    assert desk.refused["big4"].reason is RefusedFor.QUEUE_FULL
    assert set(desk.admit(9)) == {"big0", "big1", "big2", "small"}


def test_a_full_queue_refuses_the_lowest_priority():
    desk = Desk(max_queued=3)
    desk.arrive("low", priority=-1, tenant="small")
    for index in range(2):
        desk.arrive(f"high{index}", priority=3, tenant="big")
    desk.arrive("high2", priority=3, tenant="big")
    assert desk.reasons() == {"low": RefusedFor.EVICTED}
    desk.arrive("low2", priority=0, tenant="small")
    assert desk.reasons()["low2"] is RefusedFor.QUEUE_FULL


def test_a_queue_full_of_tokens_makes_room_token_by_token():
    desk = Desk(max_queued_tokens=100)
    for index in range(9):
        desk.arrive(f"big{index}", 10, tenant="big")
    desk.arrive("small", 30, tenant="small")
    assert desk.reasons() == {"big8": RefusedFor.EVICTED, "big7": RefusedFor.EVICTED}


def test_nobody_goes_for_an_arrival_that_cannot_stay():
    desk = Desk(max_queued_tokens=100)
    for index in range(6):
        desk.arrive(f"a{index}", 10, tenant="a")
    desk.arrive("b", 59, tenant="b")
    assert desk.reasons() == {"b": RefusedFor.QUEUE_FULL}
    desk.arrive("c", 101, tenant="c")
    assert desk.reasons()["c"] is RefusedFor.QUEUE_FULL


def test_the_wait_is_bounded():
    desk = Desk(max_wait_s=30.0)
    desk.arrive("a")
    assert desk.admission.next_due_at() == desk.now + 30.0
    assert desk.wait(29.9) == []
    desk.wait(0.2)
    assert desk.reasons() == {"a": RefusedFor.WAITED}
    assert desk.admission.next_due_at() is None


def test_a_deadline_that_passes_ends_the_wait():
    desk = Desk(max_wait_s=30.0)
    desk.arrive("a", deadline_at=desk.now + 2.0)
    desk.arrive("b")
    desk.wait(2.0)
    assert desk.reasons() == {"a": RefusedFor.DEADLINE}


def steady(desk: Desk, tokens_per_s: float, seconds: int = 20) -> None:
    """Let the queue drain at such a rate for a while."""
    for _ in range(seconds):
        desk.wait(1.0)
        assert desk.admit(1)
        assert desk.now
    rate = desk.admission.stats(desk.now).drain_tokens_per_s
    assert rate == pytest.approx(tokens_per_s, rel=0.1)


def test_retry_after_is_what_waits_over_the_measured_rate():
    desk = Desk(max_wait_s=1e4, max_queued=50)
    for index in range(50):
        desk.arrive(f"a{index}", 100)
    (first,) = desk.arrive("early", 100)
    assert first.retry_after_s == 1.0  # nothing measured yet
    steady(desk, 98.0)
    for index in range(20):
        desk.arrive(f"c{index}", 100)
    (late,) = desk.arrive("late", 100)
    assert late.retry_after_s == pytest.approx(51.0, rel=0.1)


def test_the_rate_is_of_the_time_in_which_somebody_waited():
    desk = Desk(max_wait_s=1e4)
    for index in range(20):
        desk.arrive(f"a{index}", 100)
    for _ in range(20):
        desk.wait(1.0)
        desk.admit(1)
    measured = desk.admission.stats(desk.now).drain_tokens_per_s
    assert measured == pytest.approx(98, rel=0.1)
    desk.wait(1000.0)
    desk.arrive("b")
    assert desk.admission.stats(desk.now).drain_tokens_per_s == pytest.approx(measured)
    desk.admission.room.worker_gone(WorkerId("w"))
    desk.workers_changed()
    desk.wait(4.0)
    assert desk.admission.stats(desk.now).drain_tokens_per_s == pytest.approx(measured)


def test_a_replay_is_charged_with_its_first_life():
    desk = Desk()
    desk.arrive("r", tenant="a")
    assert desk.admit(1) == ["r"]
    desk.arrive("r", 30, tenant="a", replay=True)
    assert desk.admit(1) == ["r"]
    assert desk.admission.is_charged(RequestId("r"))
    desk.end("r", output_tokens=5)
    assert desk.admission.service_of("a") == 10 + 2 * 5
    desk.arrive("s", tenant="a", replay=True)
    assert desk.admit(1) == ["s"]
    assert not desk.admission.is_charged(RequestId("s"))


def test_a_deadline_out_of_reach_is_refused_at_once_and_told_when_it_would_be():
    desk = Desk(max_wait_s=1e4)
    for index in range(50):
        desk.arrive(f"a{index}", 100)
    assert desk.arrive("unknown", deadline_at=desk.now + 0.5) == []
    desk.cancel("unknown")
    steady(desk, 98.0)
    (refusal,) = desk.arrive("hopeless", 100, deadline_at=desk.now + 10.0)
    assert refusal.reason is RefusedFor.TOO_LATE
    assert refusal.retry_after_s == pytest.approx(30 * 100 / 98 - 10, rel=0.1)
    assert desk.arrive("possible", 100, deadline_at=desk.now + 60.0) == []
    assert desk.arrive("another tenant's", 100, tenant="b", deadline_at=desk.now + 10.0) == []


def test_cancelled_leaves_no_trace():
    desk = Desk()
    for name in "abc":
        desk.arrive(name)
    desk.cancel("b")
    desk.cancel("b")
    stats = desk.admission.stats(desk.now)
    assert (stats.queued, stats.queued_tokens) == (2, 20)
    assert desk.admit(5) == ["a", "c"]
    assert desk.admission.next_due_at() is None


def test_many_cancelled_leave_no_garbage():
    desk = Desk()
    for index in range(500):
        desk.arrive(str(index))
        desk.cancel(str(index))
    assert len(desk.admission._due) < 20


def test_replays_go_first_and_are_never_refused_for_room():
    desk = Desk(max_queued=2)
    desk.arrive("a", priority=100)
    desk.arrive("b", priority=100)
    assert desk.arrive("replay", 10**7, replay=True) == []
    assert desk.arrive("replay2", replay=True) == []
    assert desk.admit(9) == ["replay", "replay2", "a", "b"]
    assert desk.admission.service_of("", 100) == 20  # replays were charged when they first came


def test_a_replay_that_nobody_may_have_does_not_hold_up_others():
    desk = Desk(busy=False)
    admission, now = desk.admission, desk.now
    assert admission.handle(arrived("r", replay=True), now) == [Place(RequestId("r"))]
    assert admission.handle(PassedOver(RequestId("r"), nobody=True), now) == []
    assert admission.open
    desk.wait(4.9)
    assert desk.refused == {}
    desk.wait(0.2)
    assert desk.reasons() == {"r": RefusedFor.NO_WORKER}


def test_a_replay_that_only_busy_workers_may_have_lets_who_waits_pass():
    desk = Desk()
    admission = desk.admission
    admission.handle(arrived("a"), 50.0)
    admission.handle(arrived("r", replay=True), 50.0)
    desk.set_busy(False)
    assert admission.handle(RoomChanged(), 50.1) == [Place(RequestId("r"))]
    assert admission.handle(PassedOver(RequestId("r")), 50.1) == [Place(RequestId("a"))]


def test_a_replay_that_only_busy_workers_may_have_lets_who_comes_pass():
    desk = Desk(busy=False)
    admission = desk.admission
    admission.handle(arrived("r", replay=True), 50.0)
    assert admission.handle(PassedOver(RequestId("r")), 50.0) == []
    assert admission.handle(arrived("a"), 50.001) == [Place(RequestId("a"))]
    assert admission.handle(Placed(RequestId("a"), 10, 0), 50.001) == []
    assert admission.handle(RoomChanged(), 50.02) == [Place(RequestId("r"))]


def test_those_whom_nobody_may_have_count_as_tokens_that_wait():
    desk = Desk(busy=False, max_queued_tokens=20)
    admission, now = desk.admission, desk.now
    admission.handle(arrived("a", 11), now)
    admission.handle(PassedOver(RequestId("a"), nobody=True), now)
    assert [each.reason for each in desk.arrive("b", 11)] == [RefusedFor.QUEUE_FULL]
    admission.room.worker_gone(WorkerId("w"))
    desk.handle(WorkersChanged())
    assert admission.stats(now).queued_tokens == 11


def test_a_parked_replay_is_tried_again_when_workers_come():
    desk = Desk(busy=False)
    admission, now = desk.admission, desk.now
    admission.handle(arrived("r", replay=True), now)
    admission.handle(PassedOver(RequestId("r"), nobody=True), now)
    admission.room.worker_ready(card("x"))
    assert admission.handle(WorkersChanged(), now) == [Place(RequestId("r"))]
    assert admission.handle(Placed(RequestId("r"), 10, 0), now) == []
    admission.validate()


def test_without_workers_patience_is_shorter():
    admission = Admission(AdmissionSettings(no_worker_wait_s=5.0))
    assert admission.handle(arrived("a"), 100.0) == []
    assert admission.next_due_at() == 105.0
    (refusal,) = admission.handle(TimePassed(), 105.0)
    assert refusal.reason is RefusedFor.NO_WORKER
    admission.handle(arrived("b"), 106.0)
    admission.room.worker_ready(card("w"))
    assert admission.handle(WorkersChanged(), 107.0) == [Place(RequestId("b"))]


def test_patience_counts_from_when_the_last_worker_went():
    desk = Desk(max_wait_s=100.0, no_worker_wait_s=5.0)
    desk.arrive("a")
    desk.wait(20.0)
    desk.admission.room.worker_gone(WorkerId("w"))
    desk.workers_changed()
    assert desk.wait(4.9) == []
    desk.wait(0.2)
    assert desk.reasons() == {"a": RefusedFor.NO_WORKER}


def test_who_would_go_to_busy_workers_keeps_his_turn_and_is_not_asked_again_at_once():
    desk = Desk(busy=False)
    admission = desk.admission
    assert admission.handle(arrived("a"), 50.0) == [Place(RequestId("a"))]
    assert admission.handle(PassedOver(RequestId("a")), 50.0) == []
    assert admission.handle(arrived("b"), 50.001) == []
    assert admission.next_due_at() == pytest.approx(50.01)
    assert admission.handle(TimePassed(), 50.011) == [Place(RequestId("a"))]
    assert admission.handle(PassedOver(RequestId("a")), 50.011) == []
    admission.room.worker_ready(card("x"))
    assert admission.handle(RoomChanged(), 50.012) == [Place(RequestId("a"))]


def test_choices_of_one_request_are_charged_one_by_one():
    desk = Desk()
    for index in range(4):
        desk.arrive(f"a{index}", tenant="a", group="a", sibling=index > 0)
    for index in range(4):
        desk.arrive(f"b{index}", tenant="b")
    assert desk.admit(8) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


def test_a_request_that_is_begun_is_not_refused_half_way():
    desk = Desk(max_queued=3, max_wait_s=30.0)
    for index in range(3):
        desk.arrive(f"a{index}", tenant="a", group="a", sibling=index > 0)
    assert desk.admit(1) == ["a0"]
    desk.arrive("b", tenant="b")
    desk.arrive("c", tenant="c")
    assert desk.reasons() == {"c": RefusedFor.QUEUE_FULL}
    desk.wait(31.0)
    assert desk.reasons() == {"c": RefusedFor.QUEUE_FULL, "b": RefusedFor.WAITED}
    assert desk.admit(9) == ["a1", "a2"]


def test_choices_whose_first_needed_no_wait_are_begun():
    desk = Desk(max_queued=1)
    desk.arrive("x", tenant="x")
    assert desk.arrive("a1", tenant="a", group="a", sibling=True) == []
    assert desk.arrive("a2", tenant="a", group="a", sibling=True) == []
    desk.arrive("y", tenant="y")
    assert desk.reasons() == {"y": RefusedFor.QUEUE_FULL}
    assert desk.admit(9) == ["x", "a1", "a2"]


def test_a_begun_request_still_has_its_own_deadline():
    desk = Desk(max_wait_s=30.0)
    for index in range(2):
        desk.arrive(f"a{index}", group="a", sibling=index > 0, deadline_at=desk.now + 40.0)
    desk.admit(1)
    desk.wait(35.0)
    assert desk.refused == {}
    desk.wait(6.0)
    assert desk.reasons() == {"a1": RefusedFor.DEADLINE}


def test_figures():
    desk = Desk(busy=False)
    assert desk.admission.stats(desk.now).open_workers == 1
    desk.admission.room.load_reported(WorkerId("w"), EMPTY, desk.now)
    desk.set_busy(True)
    desk.arrive("a", 7, tenant="a")
    desk.arrive("b", 5, tenant="b")
    stats = desk.admission.stats(desk.now)
    assert (stats.queued, stats.queued_tokens, stats.tenants, stats.busy_workers) == (2, 12, 2, 1)
    assert stats.drain_tokens_per_s is None
