from __future__ import annotations

from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.frontend.stall import StepWatch


def test_an_engine_with_work_and_no_steps_is_stuck_until_it_makes_one():
    watch = StepWatch(2.0)
    for tick in range(8):
        watch.reported(StepMetrics(step=7, running=1), tick * 0.25)
        assert not watch.stuck
    watch.reported(StepMetrics(step=7, running=1), 2.0)
    assert watch.stuck
    watch.reported(StepMetrics(step=8, running=1), 2.25)
    assert not watch.stuck


def test_an_engine_without_work_is_not_stuck():
    watch = StepWatch(2.0)
    for tick in range(40):
        watch.reported(StepMetrics(step=7, waiting=3), tick * 0.25)
    assert not watch.stuck
    watch.reported(StepMetrics(step=7, running=1), 10.0)
    assert not watch.stuck


def test_an_engine_whose_work_was_taken_away_is_not_stuck_any_more():
    watch = StepWatch(1.0)
    for tick in range(8):
        watch.reported(StepMetrics(step=7, running=1), tick * 0.25)
    assert watch.stuck
    watch.reported(StepMetrics(step=7), 2.0)
    assert not watch.stuck


def test_time_without_reports_is_no_evidence():
    """It is this process that stood still."""
    watch = StepWatch(60.0)
    watch.reported(StepMetrics(step=7, running=1), 0.0)
    for _ in range(10):
        watch.reported(StepMetrics(step=7, running=1), 100.0)
    assert not watch.stuck
