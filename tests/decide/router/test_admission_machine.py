"""Drive admission with every legal order of facts against a model of what became of each sequence."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.admission_room import Gate
from tokenmill.decide.router.admission_words import (
    AdmissionSettings,
    Arrived,
    Cancelled,
    Ended,
    FairCharges,
    PassedOver,
    Place,
    Placed,
    Refuse,
    RefusedFor,
    RoomChanged,
    TimePassed,
    WorkersChanged,
)
from tokenmill.protocol.ids import RequestId, WorkerId

from .admission_cases import EMPTY, FULL, Desk, card

WORKER = WorkerId("w")
TENANTS = st.sampled_from(["a", "a", "a", "b", "c"])


class Model:
    """What a sequence's owner knows of it."""

    def __init__(self, event: Arrived, at: float) -> None:
        self.event = event
        self.at = at
        self.state = "waiting"


class AdmissionMachine(RuleBasedStateMachine):
    @initialize(
        max_queued=st.integers(1, 6),
        max_queued_tokens=st.integers(20, 200),
        weight=st.sampled_from([0.5, 1.0, 3.0]),
    )
    def begin(self, max_queued, max_queued_tokens, weight):
        self.admission = Admission(
            AdmissionSettings(
                max_queued=max_queued,
                max_queued_tokens=max_queued_tokens,
                max_wait_s=30.0,
                no_worker_wait_s=5.0,
                level_turn_s=3.0,
                tenant_weights={"b": weight},
            )
        )
        self.now = 10.0
        self.models: dict[str, Model] = {}
        self.groups = 0
        self.answers: list[str] = []
        self.room_left = 0

    # The shell -----------------------------------------------------------------------------------------

    def tell(self, event) -> None:
        pending = self.admission.handle(event, self.now)
        while pending:
            *refusals, last = pending
            pending = []
            for refusal in [*refusals, *([last] if isinstance(last, Refuse) else [])]:
                assert isinstance(refusal, Refuse)
                self.refused(refusal)
            if isinstance(last, Place):
                pending = self.admission.handle(self.answer(last), self.now)

    def answer(self, place: Place):
        model = self.models[place.request_id]
        assert model.state == "waiting"
        how = self.answers.pop() if self.answers else "placed"
        if how == "busy":
            return PassedOver(place.request_id)
        if how == "nobody":
            return PassedOver(place.request_id, nobody=True)
        model.state = "admitted"
        self.room_left -= 1
        if self.room_left <= 0:
            self.admission.room.load_reported(WORKER, FULL, self.now)
        return Placed(place.request_id, model.event.tokens, 0)

    def refused(self, refusal: Refuse) -> None:
        model = self.models[refusal.request_id]
        assert model.state == "waiting"
        assert refusal.retry_after_s >= 1.0
        model.state = "refused"
        if refusal.reason is RefusedFor.WAITED:
            assert self.now >= model.at + 30.0
        elif refusal.reason is RefusedFor.DEADLINE:
            assert self.now >= model.event.deadline_at
        elif refusal.reason is RefusedFor.NO_WORKER:
            assert self.now >= model.at + 5.0
        else:
            assert not model.event.replay

    # Facts ---------------------------------------------------------------------------------------------

    @rule(
        tokens=st.integers(1, 60),
        tenant=TENANTS,
        priority=st.integers(-1, 2),
        deadline_s=st.none() | st.floats(0.5, 60),
        choices=st.sampled_from([1, 1, 1, 3]),
        replay=st.sampled_from([False, False, False, True]),
    )
    def arrive(self, tokens, tenant, priority, deadline_s, choices, replay):
        self.groups += 1
        for choice in range(choices):
            event = Arrived(
                request_id=RequestId(f"{self.groups}-{choice}"),
                tokens=tokens,
                tenant=tenant,
                priority=priority,
                deadline_at=None if deadline_s is None else self.now + deadline_s,
                group=str(self.groups) if choices > 1 else "",
                sibling=choice > 0,
                replay=replay,
            )
            self.models[event.request_id] = Model(event, self.now)
            self.tell(event)
            if self.models[event.request_id].state == "refused":
                break  # the request is over, and its other choices with it
        if choices > 1 and any(self.models.get(f"{self.groups}-{c}") is None for c in range(choices)):
            self.drop_group(str(self.groups))

    def drop_group(self, group: str) -> None:
        for name, model in self.models.items():
            if name.startswith(group + "-") and model.state == "waiting":
                model.state = "cancelled"
                self.tell(Cancelled(RequestId(name)))

    @rule(pick=st.integers(0, 30))
    def cancel(self, pick):
        waiting = [name for name, model in self.models.items() if model.state == "waiting"]
        if waiting:
            name = waiting[pick % len(waiting)]
            self.models[name].state = "cancelled"
            self.tell(Cancelled(RequestId(name)))

    @rule(pick=st.integers(0, 30), output_tokens=st.integers(0, 50))
    def end(self, pick, output_tokens):
        admitted = [name for name, model in self.models.items() if model.state == "admitted"]
        if admitted:
            name = admitted[pick % len(admitted)]
            self.models[name].state = "ended"
            self.tell(Ended(RequestId(name), output_tokens))

    @rule(room=st.integers(1, 3), answers=st.lists(st.sampled_from(["placed", "busy", "nobody"]), max_size=2))
    def make_room(self, room, answers):
        self.room_left, self.answers = room, answers
        self.admission.room.load_reported(WORKER, EMPTY, self.now)
        self.tell(RoomChanged())

    @rule()
    def fill(self):
        self.admission.room.load_reported(WORKER, FULL, self.now)
        self.tell(RoomChanged())

    @rule(came=st.booleans())
    def change_workers(self, came):
        if came:
            self.admission.room.worker_ready(card("w"))
            self.room_left = 1
        else:
            self.admission.room.worker_gone(WORKER)
        self.tell(WorkersChanged())

    @rule(passed_s=st.floats(0.001, 12))
    def wait(self, passed_s):
        self.now += passed_s
        self.tell(TimePassed())

    @precondition(lambda self: self.admission.next_due_at() is not None)
    @rule()
    def wait_until_due(self):
        due_at = self.admission.next_due_at()
        before = self.counts("waiting")
        self.now = max(self.now, due_at)
        self.tell(TimePassed())
        assert self.counts("waiting") < before or (self.admission.next_due_at() or due_at + 1) > due_at

    # What must hold ------------------------------------------------------------------------------------

    def counts(self, state: str) -> int:
        return sum(model.state == state for model in self.models.values())

    @invariant()
    def nobody_is_lost(self):
        if not hasattr(self, "admission"):
            return
        self.admission.validate()
        waiting = {name for name, model in self.models.items() if model.state == "waiting"}
        assert set(self.admission._waiting) == waiting
        assert self.admission.stats(self.now).queued == len(waiting)

    @invariant()
    def nobody_waits_while_there_is_room(self):
        if not hasattr(self, "admission"):
            return
        admission = self.admission
        if admission._replays_pause.holds(admission.room, self.now):
            return
        if admission.room.gate is Gate.OPEN and not admission._pause.holds(admission.room, self.now):
            assert admission.open

    def teardown(self):
        if not hasattr(self, "admission"):
            return
        for _ in range(10_000):
            due_at = self.admission.next_due_at()
            if due_at is None:
                break
            self.now = max(self.now, due_at)
            self.tell(TimePassed())
        # Only a request that is begun may wait without an end of its own: the request's timeout ends it.
        for entry in self.admission._waiting.values():
            assert entry.begun
            assert not entry.replay


AdmissionMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestAdmissionMachine = AdmissionMachine.TestCase


sizes = st.integers(1, 100)


@given(
    requests=st.lists(st.tuples(sizes, st.integers(0, 50)), min_size=30, max_size=120),
    weights=st.tuples(st.sampled_from([1.0, 2.0, 4.0]), st.sampled_from([1.0, 3.0])),
    slots=st.integers(1, 5),
    head_start=st.integers(0, 20),
)
@settings(max_examples=60, deadline=None)
def test_two_tenants_who_both_wait_get_their_shares(requests, weights, slots, head_start):
    """The bound of the virtual token counter: what can be charged at once, here a prompt and the output of
    all that run."""
    charges = FairCharges(input=1.0, cached=0.0, output=2.0)
    share = dict(zip("ab", weights, strict=True))
    desk = Desk(charges=charges, tenant_weights=share, max_wait_s=1e6, max_queued=10_000)
    outputs: dict[str, int] = {}
    waiting = {"a": 0, "b": 0}

    def arrive(tenant: str, number: int) -> None:
        tokens, output = requests[number % len(requests)]
        outputs[f"{tenant}{number}"] = output
        waiting[tenant] += 1
        desk.arrive(f"{tenant}{number}", tokens, tenant=tenant)

    for number in range(head_start):  # a has been served alone for a while
        arrive("a", number)
        desk.admit(1)
        desk.end(desk.placed[-1], 50)
        waiting["a"] -= 1
    for number in range(60):
        arrive("a", head_start + number)
        arrive("b", 7 * number + 3)
    base = {tenant: desk.admission.service_of(tenant) for tenant in "ab"}
    running: list[str] = []
    most = (max(size for size, _ in requests) + slots * 2.0 * 50) / min(weights)
    while min(waiting.values()):
        if len(running) == slots:
            name = running.pop(0)
            desk.end(name, outputs[name])
        (name,) = desk.admit(1)
        waiting[name[0]] -= 1
        running.append(name)
        served = {tenant: desk.admission.service_of(tenant) - base[tenant] for tenant in "ab"}
        assert abs(served["a"] - served["b"]) <= 2 * most


@pytest.mark.parametrize("choices", [1, 8])
def test_a_flood_does_not_starve_a_small_tenant(choices):
    desk = Desk(max_queued=64, max_wait_s=1e6)
    for request in range(100):
        for choice in range(choices):
            desk.arrive(
                f"flood{request}-{choice}", 50, tenant="flood", group=f"f{request}", sibling=choice > 0
            )
            if f"flood{request}-{choice}" in desk.refused:
                break
    for number in range(5):
        desk.arrive(f"small{number}", 50, tenant="small")
    assert not any(name.startswith("small") for name in desk.refused)
    names = desk.admit(12)
    assert len([name for name in names if name.startswith("small")]) == 5


def test_a_low_level_is_not_starved_by_a_flood_above_it():
    desk = Desk(level_turn_s=5.0, max_wait_s=1000.0, max_queued=10_000)
    for number in range(20):
        desk.arrive(f"low{number}", priority=-1)
    for number in range(200):
        desk.arrive(f"high{number}", priority=1)
    for _ in range(100):
        desk.wait(1.0)
        assert desk.admit(1)
    turns = [index for index, name in enumerate(desk.placed) if name.startswith("low")]
    assert 15 <= len(turns) <= 20
    assert min(after - before for before, after in pairwise(turns)) >= 5
