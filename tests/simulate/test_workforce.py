"""What happens to workers: failures, stragglers, scaling."""

from __future__ import annotations

from typing import Any

import pytest
from tests.simulate.scenes import aggregated, stage

from tokenmill.decide.router.settings import RouterSettings
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.record import RunRecord
from tokenmill.simulate.scene import (
    LinkScene,
    LinkSlow,
    Scene,
    StageScaled,
    WorkerFails,
    WorkerSlow,
)
from tokenmill.simulate.traces import Trace, TracedRequest


def words(run: RunRecord) -> list[tuple[float, str]]:
    return [(event.at_s, event.what) for event in run.events_log]


def test_a_request_goes_on_elsewhere_when_its_worker_fails() -> None:
    fails = WorkerFails(at_s=0.0405, stage="both", index=0)
    run = simulate(
        aggregated(workers=2, events=[fails], policy="round-robin"), Trace([TracedRequest(0.0, 8, 20)])
    )
    (only,) = run.requests
    if only.attempts == 1:  # the other one had it
        fails = WorkerFails(at_s=0.0405, stage="both", index=1)
        run = simulate(
            aggregated(workers=2, events=[fails], policy="round-robin"), Trace([TracedRequest(0.0, 8, 20)])
        )
        (only,) = run.requests
    assert (only.attempts, only.output_tokens, run.migrations) == (2, 20, 1)
    # First token at 18 ms and four more by 38 ms; heard of at 41.5 ms, 13 tokens are computed again in 23 ms.
    assert only.ttft_ms == pytest.approx(18)
    assert only.whole_ms == pytest.approx(41.5 + 10 + 13 + 14 * 5)
    assert run.gaps.count == 19
    assert run.gaps.most_s == pytest.approx((41.5 + 23 - 38) / 1000)


def test_a_worker_that_comes_back_has_a_new_name_and_an_empty_cache() -> None:
    scene = Scene(
        stages=[stage(start_s=0.5)],
        events=[WorkerFails(at_s=1.0, stage="both", index=0, back_after_s=0.25)],
    )
    ids = tuple(range(8))
    trace = Trace(
        [TracedRequest(0.0, 60, 2, ids), TracedRequest(1.5, 8, 2), TracedRequest(2.0, 60, 2, ids)], 8
    )
    run = simulate(scene, trace)
    assert [each.outcome for each in run.requests] == ["served", "refused", "served"]
    assert (run.requests[2].decode_worker, run.requests[2].cached_tokens) == ("both-0.2", 0)
    assert words(run) == [
        (1.0, "both-0 has failed"),
        (1.25, "both-0.2 is coming up"),
        (1.75, "both-0.2 is ready"),
    ]
    assert run.stages[0].worker_s == pytest.approx(1.0 + run.requests[2].last_s - 1.25)


def test_a_request_is_not_tried_for_ever() -> None:
    fails = [WorkerFails(at_s=0.02 + 0.05 * n, stage="both", index=n) for n in range(4)]
    scene = aggregated(workers=6, events=fails, policy="round-robin", most_attempts=1)
    run = simulate(scene, Trace([TracedRequest(0.0, 8, 200) for _ in range(6)]))
    assert {each.reason for each in run.requests if not each.served} == {"attempts"}
    assert sum(each.served for each in run.requests) == 2


def test_a_straggler_is_slow_while_it_is_slow() -> None:
    slow = WorkerSlow(at_s=0.0, until_s=0.1, stage="both", index=0, factor=10.0)
    run = simulate(aggregated(events=[slow]), Trace([TracedRequest(0.0, 2, 3)]))
    (only,) = run.requests
    assert only.ttft_ms == pytest.approx(120)  # begun while it was slow
    assert only.whole_ms == pytest.approx(130)


def test_a_stage_grows_after_start_up_and_shrinks_when_work_is_done() -> None:
    scene = Scene(
        stages=[stage(start_s=1.0)],
        router=RouterSettings(policy="round-robin"),
        events=[
            StageScaled(at_s=1.0, stage="both", workers=3),
            StageScaled(at_s=3.0, stage="both", workers=1),
        ],
    )
    trace = Trace([TracedRequest(0.1 * n, 8, 30) for n in range(60)])
    run = simulate(scene, trace)
    by_worker = {
        name: [each.arrived_s for each in run.requests if each.decode_worker == name]
        for name in ("both-0", "both-1", "both-2")
    }
    assert all(each.served for each in run.requests)
    assert min(by_worker["both-1"]) == pytest.approx(2.0, abs=0.4)
    assert max(by_worker["both-2"]) <= 3.0
    left = [at for at, what in words(run) if what.endswith("has left")]
    assert len(left) == 2
    assert all(3.0 <= at < 3.5 for at in left)
    assert {sample.workers for sample in run.stages[0].samples} == {1, 3}


def pair(**changes: Any) -> Scene:
    kv = {"kv_bytes_per_token": 1000.0}
    return Scene(
        stages=[stage(Role.PREFILL, 2, **kv), stage(Role.DECODE, 2, **kv)],
        links=LinkScene(bytes_per_s=1e5, latency_s=0.001),
        router=RouterSettings(prefill="remote"),
        **changes,
    )


@pytest.mark.parametrize("at_s", [0.005, 0.03, 0.1, 0.3, 1.2])
@pytest.mark.parametrize("name", ["prefill", "decode"])
@pytest.mark.parametrize("early", [True, False])
def test_all_are_served_whoever_of_a_pair_fails(at_s: float, name: str, early: bool) -> None:
    fails = [WorkerFails(at_s=at_s, stage=name, index=n) for n in range(1)]
    trace = Trace([TracedRequest(0.01 * n, 40, 30) for n in range(8)])
    run = simulate(pair(events=fails, early_handoff=early), trace)
    assert [each.output_tokens for each in run.requests] == [30] * 8
    assert all(each.served for each in run.requests)


def test_one_token_does_not_care_about_the_decode_worker() -> None:
    fails = WorkerFails(at_s=0.03, stage="decode", index=0)
    gone = WorkerFails(at_s=0.03, stage="decode", index=1)
    run = simulate(pair(events=[fails, gone]), Trace([TracedRequest(0.0, 40, 1)]))
    assert (run.requests[0].outcome, run.migrations, run.handoffs) == ("served", 0, 0)


def test_a_scene_with_a_bad_event_is_refused() -> None:
    trace = Trace([TracedRequest(0.0, 8, 2)])
    bad = [
        WorkerFails(at_s=-1.0, stage="both", index=0),
        WorkerFails(at_s=1.0, stage="no such", index=0),
        WorkerSlow(at_s=1.0, until_s=0.5, stage="both", index=0, factor=2.0),
        LinkSlow(at_s=1.0, until_s=2.0, factor=0.0),
        StageScaled(at_s=1.0, stage="both", workers=-1),
    ]
    for event in bad:
        with pytest.raises(ConfigError, match="events"):
            simulate(aggregated(events=[event]), trace)


def test_a_worker_that_is_not_there_cannot_fail() -> None:
    run = simulate(
        aggregated(events=[WorkerFails(at_s=0.0, stage="both", index=7)]), Trace([TracedRequest(1.0, 8, 2)])
    )
    assert words(run) == [(0.0, "both-7 was to fail, and is not there")]
