"""The supervision's decisions, in virtual time and without a process."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tokenmill.operate.deploy.plant import (
    AnnounceReady,
    Finish,
    KillProcess,
    PlanChanged,
    ProcessExited,
    ProcessFailed,
    ProcessReady,
    ProcessSpec,
    ProcessStarted,
    SetTimer,
    StartProcess,
    State,
    StopAsked,
    StopProcess,
    TimerFired,
)
from tokenmill.operate.deploy.supervision import BACKOFF_MOST_S, BOOT_ATTEMPTS, READY_TIMEOUT_S, Supervision
from tokenmill.protocol.ids import Role
from tokenmill.spec.process import FrontendConfig, WorkerConfig


def worker(stage="decode", replica=0, *, max_sequences=64, grace_s=10.0):
    config = WorkerConfig(stage=stage, replica=replica, role=Role.BOTH, max_sequences=max_sequences)
    name = f"{stage}-{replica}"
    return ProcessSpec(name=name, stage=stage, replica=replica, config=config, grace_s=grace_s)


def frontend(port=8000, *, body=1000):
    config = FrontendConfig(port=port, max_body_bytes=body)
    return ProcessSpec(
        name="frontend-0",
        stage="frontend",
        replica=0,
        config=config,
        exclusive=frozenset({f"port {port}"}),
        grace_s=10.0,
    )


class World:
    """Carries orders out in the mind: which processes are alive, what was ordered, what time it is."""

    def __init__(self):
        self.core = Supervision()
        self.now = 100.0
        self.alive = {}
        self.starts = []
        self.stopped = set()
        self.timer = None
        self.announced = 0
        self.finish = None

    def feed(self, event):
        orders = self.core.handle(event, self.now)
        for order in orders:
            match order:
                case StartProcess(instance=number, spec=spec):
                    assert number not in self.alive
                    self.alive[number] = spec
                    self.starts.append((self.now, spec.name))
                case StopProcess(instance=number):
                    assert number in self.alive
                    self.stopped.add(number)
                case KillProcess(instance=number):
                    assert number in self.alive
                    self.stopped.add(number)
                case SetTimer(at=at):
                    self.timer = at
                case AnnounceReady():
                    self.announced += 1
                case Finish():
                    assert self.finish is None
                    self.finish = order
        return orders

    def plan(self, *specs):
        return self.feed(PlanChanged(specs=specs))

    def number(self, name, index=-1):
        return [number for number, spec in self.alive.items() if spec.name == name][index]

    def ready(self, name, index=-1):
        number = self.number(name, index)
        self.feed(ProcessStarted(instance=number, pid=1000 + number))
        return self.feed(ProcessReady(instance=number, info={}))

    def exit(self, name, code=1, index=-1, message=""):
        number = self.number(name, index)
        del self.alive[number]
        return self.feed(ProcessExited(instance=number, code=code, message=message))

    def wait(self, seconds):
        """Let time pass, firing the timer when due."""
        end = self.now + seconds
        orders = []
        while self.timer is not None and self.timer <= end:
            self.now, self.timer = max(self.now, self.timer), None
            orders += self.feed(TimerFired())
        self.now = end
        return orders

    def names(self):
        return sorted(spec.name for spec in self.alive.values())

    def state(self, name):
        return next(row for row in self.core.statuses() if row.name == name)


@pytest.fixture
def world():
    return World()


def test_all_start_at_once_and_ready_is_announced_once(world):
    world.plan(worker("prefill"), worker("decode"), frontend())
    assert world.names() == ["decode-0", "frontend-0", "prefill-0"]
    world.ready("frontend-0")
    world.ready("prefill-0")
    assert world.announced == 0
    world.ready("decode-0")
    world.feed(TimerFired())
    assert world.announced == 1
    assert world.core.ready


def test_a_crashed_process_restarts_with_doubling_patience(world):
    world.plan(worker())
    world.ready("decode-0")
    gaps = []
    for _ in range(9):
        died = world.now
        world.exit("decode-0", code=-9)
        world.wait(100.0)
        gaps.append(round(world.starts[-1][0] - died, 3))
        world.now = world.starts[-1][0] + 0.0 if world.now < world.starts[-1][0] else world.now
        world.ready("decode-0")
    assert gaps == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert world.state("decode-0").restarts == 9


def test_a_minute_of_health_forgives_earlier_crashes(world):
    world.plan(worker())
    world.ready("decode-0")
    for _ in range(4):
        world.exit("decode-0")
        world.wait(30.0)
        world.ready("decode-0")
    world.wait(60.0)
    died = world.now
    world.exit("decode-0")
    world.wait(10.0)
    assert world.starts[-1][0] - died == 0.5


def test_who_was_killed_is_said_to_be_whatever_it_said_last(world):
    world.plan(worker())
    world.ready("decode-0")
    world.exit("decode-0", code=-9, message="12:00:00 [info     ] worker ready")
    assert world.state("decode-0").message == "killed by signal 9"


def test_a_config_fault_at_the_start_ends_the_factory_with_its_message(world):
    world.plan(worker("prefill"), worker("decode"))
    world.feed(ProcessFailed(instance=1, message="no such model", config_fault=True))
    world.exit("prefill-0", code=2)
    assert world.finish is None
    world.exit("decode-0", code=0)
    assert world.finish == Finish(status=2, message="prefill-0: no such model")
    assert len(world.starts) == 2


def test_exit_status_2_before_ready_is_a_config_fault_even_without_a_report(world):
    world.plan(worker())
    world.exit("decode-0", code=2, message="--dtype: no float7")
    assert world.finish == Finish(status=2, message="decode-0: --dtype: no float7")


def test_a_factory_that_never_came_up_gives_up_after_some_crashes(world):
    world.plan(worker())
    for _ in range(BOOT_ATTEMPTS):
        assert world.finish is None
        world.exit("decode-0", message="boom")
        world.wait(60.0)
    assert world.finish == Finish(status=1, message="decode-0: boom")


def test_a_config_fault_after_a_change_keeps_the_running_replica(world):
    world.plan(worker())
    world.ready("decode-0")
    world.plan(worker(max_sequences=1))
    world.feed(ProcessFailed(instance=2, message="too few", config_fault=True))
    world.exit("decode-0", code=2)
    world.wait(1000.0)
    assert world.names() == ["decode-0"]
    assert world.stopped == set()
    assert world.finish is None
    assert not world.core.ready


def test_a_given_up_process_is_tried_again_when_the_plan_changes(world):
    world.plan(worker())
    world.ready("decode-0")
    world.plan(worker(), worker("prefill"))
    world.exit("prefill-0", code=2, message="bad")
    assert world.state("prefill-0").state is State.FAILED
    assert world.state("prefill-0").message == "bad"
    world.plan(worker(), worker("prefill", max_sequences=2))
    world.ready("prefill-0")
    assert world.core.ready


def test_stop_drains_front_doors_before_workers(world):
    world.plan(worker(), frontend())
    world.ready("decode-0")
    world.ready("frontend-0")
    orders = world.feed(StopAsked())
    assert [order.instance for order in orders if isinstance(order, StopProcess)] == [2]
    orders = world.exit("frontend-0", code=0)
    assert [order.instance for order in orders if isinstance(order, StopProcess)] == [1]
    world.exit("decode-0", code=0)
    assert world.finish == Finish(status=0)


def test_who_outlives_its_grace_is_killed_again_and_again(world):
    world.plan(worker(grace_s=10.0))
    world.ready("decode-0")
    world.feed(StopAsked())
    assert not any(isinstance(order, KillProcess) for order in world.wait(9.9))
    assert any(isinstance(order, KillProcess) for order in world.wait(0.2))
    assert any(isinstance(order, KillProcess) for order in world.wait(6.0))


def test_a_second_stop_kills_all(world):
    world.plan(worker(), frontend())
    world.feed(StopAsked())
    orders = world.feed(StopAsked(at_once=True))
    assert {order.instance for order in orders if isinstance(order, KillProcess)} == {1, 2}


def test_nothing_starts_after_a_stop(world):
    world.plan(worker())
    world.ready("decode-0")
    world.exit("decode-0")
    world.feed(StopAsked())
    assert world.finish == Finish(status=0)
    world.wait(100.0)
    world.plan(worker("prefill"))
    assert len(world.starts) == 1


def test_loading_too_long_counts_as_a_crash(world):
    world.plan(worker())
    orders = world.wait(READY_TIMEOUT_S + 1)
    assert any(isinstance(order, KillProcess) for order in orders)
    world.exit("decode-0", code=-9)
    world.wait(1.0)
    assert len(world.starts) == 2


def test_a_ready_process_may_live_long(world):
    world.plan(worker())
    world.ready("decode-0")
    assert not any(isinstance(order, KillProcess) for order in world.wait(READY_TIMEOUT_S * 10))


def test_scaling_up_and_down_leaves_the_others_alone(world):
    world.plan(worker(), frontend())
    world.ready("decode-0")
    world.ready("frontend-0")
    more = dataclasses.replace(worker(), threads=7)  # a smaller share of the cores is no reason to restart
    world.plan(more, worker(replica=1), frontend())
    assert world.names() == ["decode-0", "decode-1", "frontend-0"]
    world.ready("decode-1")
    world.plan(worker(), frontend())
    assert world.stopped == {world.number("decode-1")}


def test_a_changed_stage_is_replaced_one_replica_at_a_time_new_before_old(world):
    world.plan(worker(replica=0), worker(replica=1))
    world.ready("decode-0")
    world.ready("decode-1")
    world.plan(worker(replica=0, max_sequences=8), worker(replica=1, max_sequences=8))
    assert world.names() == ["decode-0", "decode-0", "decode-1"]
    assert world.stopped == set()
    world.ready("decode-0")
    assert world.stopped == {1}
    assert world.names() == ["decode-0", "decode-0", "decode-1"]
    world.exit("decode-0", code=0, index=0)
    assert world.names() == ["decode-0", "decode-1", "decode-1"]
    world.ready("decode-1")
    assert world.stopped == {1, 2}
    assert world.announced == 2


def test_a_front_door_on_the_same_port_goes_before_its_successor_comes(world):
    world.plan(frontend())
    world.ready("frontend-0")
    world.plan(frontend(body=5))
    assert world.names() == ["frontend-0"]
    assert world.stopped == {1}
    world.exit("frontend-0", code=0)
    world.ready("frontend-0")
    assert world.core.ready


def test_a_front_door_on_another_port_comes_before_its_predecessor_goes(world):
    world.plan(frontend())
    world.ready("frontend-0")
    world.plan(frontend(port=9000))
    assert world.names() == ["frontend-0", "frontend-0"]
    assert world.stopped == set()
    world.ready("frontend-0")
    assert world.stopped == {1}


def test_front_doors_that_move_one_port_up_do_not_block_each_other(world):
    def fronts(first):
        return [
            dataclasses.replace(frontend(port=first + i), name=f"frontend-{i}", replica=i) for i in range(3)
        ]

    world.plan(*fronts(8000))
    for i in range(3):
        world.ready(f"frontend-{i}")
    world.plan(*fronts(8001))
    for _ in range(20):
        for number, spec in list(world.alive.items()):
            if number in world.stopped:
                del world.alive[number]
                world.feed(ProcessExited(instance=number, code=0))
            elif number > 3:
                world.feed(ProcessReady(instance=number, info={}))
            del spec
    assert world.core.ready
    assert sorted(spec.config.port for spec in world.alive.values()) == [8001, 8002, 8003]


def test_a_stage_that_goes_waits_for_the_stages_that_take_over(world):
    world.plan(worker("both"))
    world.ready("both-0")
    world.plan(worker("prefill"), worker("decode"))
    world.ready("prefill-0")
    assert world.stopped == set()
    world.ready("decode-0")
    assert world.stopped == {1}


def test_reports_about_unknown_processes_are_ignored(world):
    world.plan(worker())
    for event in (
        ProcessStarted(instance=77, pid=1),
        ProcessReady(instance=77, info={}),
        ProcessFailed(instance=77, message="x", config_fault=True),
        ProcessExited(instance=77, code=1),
    ):
        world.feed(event)
    assert world.names() == ["decode-0"]


STAGES = st.dictionaries(
    st.sampled_from(["prefill", "decode", "both"]),
    st.tuples(st.integers(0, 3), st.integers(1, 2)),
    max_size=3,
)


class AnyOrder(RuleBasedStateMachine):
    """Whatever happens in whatever order: no process is forgotten, none is doubled, restarts are bounded."""

    def __init__(self):
        super().__init__()
        self.world = World()
        self.plan_changes = 0
        self.stopped = False

    @rule(stages=STAGES, front=st.sampled_from([None, (8000, 1), (8000, 2), (8001, 1)]))
    def change_plan(self, stages, front):
        specs = [
            worker(stage, replica, max_sequences=size)
            for stage, (count, size) in stages.items()
            for replica in range(count)
        ]
        if front:
            specs.append(frontend(front[0], body=front[1]))
        self.world.plan(*specs)
        self.plan_changes += 1

    def pick(self, data):
        return data.draw(st.sampled_from(sorted(self.world.alive)))

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data(), kind=st.sampled_from(["started", "ready", "failed", "fault"]))
    def report(self, data, kind):
        number = self.pick(data)
        self.world.feed(
            {
                "started": ProcessStarted(instance=number, pid=number),
                "ready": ProcessReady(instance=number, info={}),
                "failed": ProcessFailed(instance=number, message="no", config_fault=False),
                "fault": ProcessFailed(instance=number, message="never", config_fault=True),
            }[kind]
        )

    @precondition(lambda self: self.world.alive)
    @rule(data=st.data(), code=st.sampled_from([0, 1, 2, -9, None]))
    def exit(self, data, code):
        number = self.pick(data)
        del self.world.alive[number]
        self.world.feed(ProcessExited(instance=number, code=code))

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 5.0, 31.0, 61.0]))
    def pass_time(self, seconds):
        self.world.wait(seconds)

    @rule(at_once=st.booleans())
    def stop(self, at_once):
        self.world.feed(StopAsked(at_once=at_once))
        self.stopped = True

    @invariant()
    def the_core_knows_every_living_process(self):
        assert set(self.world.core._instances) == set(self.world.alive)

    @invariant()
    def what_is_exclusive_is_held_once(self):
        held = [each for spec in self.world.alive.values() for each in spec.exclusive]
        assert len(held) == len(set(held))

    @invariant()
    def a_place_has_at_most_one_process_that_is_as_it_should_be(self):
        for spec in self.world.core._desired.values():
            assert len([each for each in self.world.core._active(spec.name) if each.spec == spec]) <= 1

    @invariant()
    def finished_means_nothing_lives(self):
        assert self.world.finish is None or not self.world.alive

    def teardown(self):
        """From anywhere, a stop comes to its end: whoever is told to go or is killed goes in the end."""
        world = self.world
        if not self.stopped:
            before = len(world.starts)
            self.settle()
            slots = len(world.core._slots)
            assert len(world.starts) - before <= slots * 20
        starts = len(world.starts)
        world.feed(StopAsked())
        for _ in range(50):
            for number in list(world.alive):
                if number in world.stopped:
                    del world.alive[number]
                    world.feed(ProcessExited(instance=number, code=0))
            world.wait(20.0)
        assert world.finish is not None
        assert not world.alive
        assert len(world.starts) == starts

    def settle(self):
        """If from now on everything works, the factory becomes what it should be (or has given up)."""
        world = self.world
        for _ in range(40):
            for number, spec in list(world.alive.items()):
                if number in world.stopped:
                    del world.alive[number]
                    world.feed(ProcessExited(instance=number, code=0))
                elif world.core._instances[number].state is State.FAILED:
                    del world.alive[number]
                    world.feed(ProcessExited(instance=number, code=1))
                else:
                    world.feed(ProcessReady(instance=number, info={}))
                del spec
            world.wait(BACKOFF_MOST_S)
        hopeless = {name for name, slot in world.core._slots.items() if slot.given_up}
        if world.finish is None and not hopeless:
            assert world.core.ready
            assert world.names() == sorted(world.core._desired)


AnyOrder.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase


def on_gpus(stage, *gpus, max_sequences=64):
    spec = worker(stage, max_sequences=max_sequences)
    config = dataclasses.replace(spec.config, gpus=list(gpus))
    return dataclasses.replace(spec, config=config, exclusive=frozenset(f"GPU {gpu}" for gpu in gpus))


def test_a_worker_on_a_gpu_goes_before_its_successor_comes(world):
    world.plan(on_gpus("decode", 0, 1))
    world.ready("decode-0")
    world.plan(on_gpus("decode", 0, 1, max_sequences=8))
    assert [len(world.stopped), world.names()] == [1, ["decode-0"]]
    world.exit("decode-0", code=0)
    assert [world.core._instances[number].spec for number in world.alive] == [
        on_gpus("decode", 0, 1, max_sequences=8)
    ]


def test_a_stage_that_goes_gives_its_gpus_to_those_that_come(world):
    """It would otherwise stay until they are ready, and they would wait for its GPUs."""
    world.plan(on_gpus("both", 0, 1))
    world.ready("both-0")
    world.plan(on_gpus("prefill", 0), on_gpus("decode", 1))
    assert world.names() == ["both-0"]
    assert len(world.stopped) == 1
    world.exit("both-0", code=0)
    assert world.names() == ["decode-0", "prefill-0"]


def test_a_stage_that_goes_stays_until_others_on_other_gpus_are_ready(world):
    world.plan(on_gpus("both", 0))
    world.ready("both-0")
    world.plan(on_gpus("decode", 1))
    assert (world.names(), world.stopped) == (["both-0", "decode-0"], set())
    world.ready("decode-0")
    assert len(world.stopped) == 1
