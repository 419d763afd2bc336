"""Aggregated plants: times that can be reckoned by hand, facts that reach the router late, runs that
repeat."""

from __future__ import annotations

import gc
from itertools import pairwise

import msgspec
import pytest
from tests.simulate.scenes import LISTENERS, TIMES, Listening, aggregated, stage, state

from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.router.admission_words import AdmissionSettings, BusyThresholds
from tokenmill.decide.router.types import Candidate, Choice, RouteRequest
from tokenmill.errors import ConfigError
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.simulate import plant
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.record import RunRecord
from tokenmill.simulate.report import Figures, figures_of, outcomes_of, quantile
from tokenmill.simulate.scene import Scene
from tokenmill.simulate.timing import ModelTimes, PolynomialTimes
from tokenmill.simulate.traces import Trace, TracedRequest


def run(requests: list[TracedRequest], **changes: object) -> Figures:
    return figures_of(simulate(aggregated(**changes), Trace(requests, prefix_block_tokens=8)))


def test_one_request_takes_what_its_steps_take() -> None:
    figures = run([TracedRequest(1.0, 40, 5)])
    assert figures.ttft_mean_ms == pytest.approx(10 + 40)
    assert figures.tpot_mean_ms == figures.itl_mean_ms == pytest.approx(5)
    assert figures.itl_p99_ms == pytest.approx(5, rel=0.003)
    assert figures.makespan_s == pytest.approx(0.050 + 4 * 0.005)
    assert (figures.requests, figures.refused, figures.prefix_hit) == (1, 0, 0.0)


def test_the_front_s_time_is_added_to_the_first_token_and_the_end() -> None:
    trace = Trace([TracedRequest(0.0, 40, 5), TracedRequest(0.01, 8, 3), TracedRequest(0.02, 5000, 5)])
    plain = simulate(aggregated(), trace)
    fronted = simulate(aggregated(front_s=0.25), trace)
    for before, after in zip(plain.requests[:2], fronted.requests[:2], strict=True):
        assert after.ttft_ms == pytest.approx(before.ttft_ms + 250)
        assert after.whole_ms == pytest.approx(before.whole_ms + 250)
        assert after.tpot_ms == pytest.approx(before.tpot_ms)
    assert fronted.requests[2].reason == plain.requests[2].reason == "context_length_exceeded"
    assert fronted.requests[2].first_s == 0
    assert fronted.gaps.state() == plain.gaps.state()
    assert fronted.makespan_s == pytest.approx(plain.makespan_s + 0.25)


def test_a_record_tells_who_did_what() -> None:
    record = simulate(aggregated(), Trace([TracedRequest(1.0, 40, 5, klass="chat", tenant="t")]))
    (only,) = record.requests
    assert (only.number, only.klass, only.arrived_s, only.attempts) == (0, "chat", 1.0, 1)
    assert (only.prefill_worker, only.decode_worker) == ("both-0", "both-0")
    assert (only.prompt_tokens, only.output_tokens, only.outcome, only.reason) == (40, 5, "served", "")
    assert only.whole_ms == pytest.approx(50 + 20)
    assert (record.steps, record.stages[0].steps, record.gaps.count) == (5, 5, 4)
    assert (record.stages[0].prefill_tokens, record.stages[0].decode_tokens) == (40, 4)
    assert record.stages[0].busy_s == pytest.approx(0.07)


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    assert run([TracedRequest(0.0, 100, 1)]).ttft_mean_ms == pytest.approx(10 + 64 + 10 + 36)


def test_a_prompt_stalls_who_decodes() -> None:
    figures = run([TracedRequest(0.0, 8, 3), TracedRequest(0.019, 30, 1)])
    # First prompt until 18 ms, a decode until 23 ms, then both: 5 + 10 + 30 ms.
    assert figures.itl_p99_ms == pytest.approx(45, rel=0.02)
    assert figures.ttft_p99_ms == pytest.approx(23 + 45 - 19, rel=0.02)


def test_a_prefix_is_found_again_in_whole_blocks() -> None:
    figures = run([TracedRequest(0.0, 30, 1, (0, 1, 2, 3)), TracedRequest(1.0, 30, 1, (0, 1, 2, 4))])
    assert figures.prefix_hit == pytest.approx(24 / 60)
    assert figures.ttft_p99_ms == pytest.approx(40, rel=0.02)
    assert figures.ttft_mean_ms == pytest.approx((40 + 16) / 2)


def test_equal_ids_after_unequal_ones_share_nothing() -> None:
    figures = run([TracedRequest(0.0, 30, 1, (0, 1, 2, 3)), TracedRequest(1.0, 30, 1, (9, 1, 2, 3))])
    assert figures.prefix_hit == 0.0


def test_kv_routing_sends_a_prefix_where_it_is_cached() -> None:
    requests = [TracedRequest(float(n), 60, 2, (n % 2, 2 + n % 2, *range(10, 16))) for n in range(20)]
    by_cache, by_turn = run(requests, workers=3), run(requests, workers=3, policy="round-robin")
    assert by_cache.prefix_hit > by_turn.prefix_hit
    assert by_cache.ttft_mean_ms < by_turn.ttft_mean_ms


def test_a_request_that_no_worker_can_hold_is_refused() -> None:
    record = simulate(aggregated(), Trace([TracedRequest(0.0, 2000, 1), TracedRequest(0.0, 8, 1)]))
    assert [each.outcome for each in record.requests] == ["refused", "served"]
    assert record.requests[0].reason == "context_length_exceeded"
    assert (figures_of(record).requests, figures_of(record).refused) == (2, 1)


def test_a_full_worker_sends_requests_to_others() -> None:
    batching = msgspec.structs.replace(stage().batching, max_waiting=1, max_sequences=1)
    scene = Scene(stages=[stage(workers=2, batching=batching)])
    record = simulate(scene, Trace([TracedRequest(0.0, 8, 4) for _ in range(4)]))
    assert all(each.served for each in record.requests)


def test_a_run_repeats() -> None:
    trace = Trace([TracedRequest(n * 0.01, 20 + n % 7, 3 + n % 5, (0, n % 3, n)) for n in range(60)], 8)
    assert state(simulate(aggregated(workers=3), trace)) == state(simulate(aggregated(workers=3), trace))


@pytest.mark.parametrize("policy", ["kv", "least-loaded", "power-of-two", "round-robin", "random", "session"])
def test_every_policy_serves_all(policy: str) -> None:
    requests = [TracedRequest(n * 0.01, 20, 3, (0, 1 + n % 5, 6 + n)) for n in range(40)]
    figures = run(requests, workers=4, policy=policy)
    assert (figures.requests, figures.refused) == (40, 0)


class Last:
    """A policy of a user."""

    def choose(self, candidates: list[Candidate], request: RouteRequest, now: float) -> Choice:
        return Choice(candidates[-1].card.worker_id)


def test_a_policy_of_the_users_own_decides() -> None:
    record = simulate(aggregated(workers=3), Trace([TracedRequest(0.0, 8, 2)] * 5), policy=Last)
    assert {each.decode_worker for each in record.requests} == {"both-2"}


# Admission ---------------------------------------------------------------------------------------------


def test_who_comes_while_all_are_busy_waits_and_is_served() -> None:
    admission = AdmissionSettings(busy=BusyThresholds(prefill_tokens=40, prefill_s=0.05))
    trace = Trace([TracedRequest(0.001 * n, 40, 3) for n in range(30)])
    record = simulate(aggregated(admission=admission), trace)
    assert all(each.served for each in record.requests)
    assert max(waiting for _, waiting in record.queued) > 5
    assert max(sample.queued for sample in record.stages[0].samples) < 5


def test_who_waits_too_long_is_refused() -> None:
    admission = AdmissionSettings(busy=BusyThresholds(prefill_tokens=40, prefill_s=0.05), max_wait_s=0.2)
    trace = Trace([TracedRequest(0.001 * n, 40, 3) for n in range(30)])
    refused = [each for each in simulate(aggregated(admission=admission), trace).requests if not each.served]
    assert refused
    assert {each.reason for each in refused} == {"waited_too_long"}


def test_a_plant_without_workers_refuses() -> None:
    trace = Trace([TracedRequest(0.0, 8, 2)])
    assert simulate(aggregated(workers=0), trace).requests[0].reason == "no_worker"
    waited = simulate(aggregated(workers=0, admission=AdmissionSettings(no_worker_wait_s=1.0)), trace)
    assert waited.requests[0].reason == "no_worker"
    with pytest.raises(ValueError, match="nothing to report"):
        figures_of(waited)


# What the router hears ---------------------------------------------------------------------------------


def heard(scene: Scene, trace: Trace) -> tuple[RunRecord, Listening]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plant, "Router", Listening)
        LISTENERS.clear()
        record = simulate(scene, trace, jump=False)
    return record, LISTENERS[0]


def loads(router: Listening) -> list[tuple[float, StepMetrics]]:
    return [(at, word) for kind, _, word, at in router.heard if isinstance(word, StepMetrics)]


def test_the_router_hears_late_and_not_too_often() -> None:
    scene = aggregated(message_delay_s=0.002, report_interval_s=0.03)
    # Messages are carried in when somebody asks: hence the second request.
    _, router = heard(scene, Trace([TracedRequest(0.0, 16, 20), TracedRequest(9.0, 1, 1)]))
    events = [at for kind, _, _, at in router.heard if kind == "kv"]
    assert events[0] == pytest.approx(0.026 + 0.002)
    told = loads(router)
    assert told[0][0] == pytest.approx(0.002)
    assert all(later - earlier > 0.0299 for (earlier, _), (later, _) in pairwise(told))
    assert (told[-1][1].running, told[0][1].waiting_prefill_tokens) == (0, 16)


def test_reports_tell_the_time_of_the_step_they_tell_of() -> None:
    scene = aggregated(report_interval_s=1e-9)
    _, router = heard(scene, Trace([TracedRequest(0.0, 100, 3), TracedRequest(9.0, 1, 1)]))
    told = {m.step: (m.prefill_tokens, m.decode_tokens, m.step_ms) for _, m in loads(router) if m.step}
    assert told == {1: (64, 0, 74.0), 2: (36, 0, 46.0), 3: (0, 1, 5.0), 4: (0, 1, 5.0)}


# The rest ----------------------------------------------------------------------------------------------


def test_the_polynomials_are_the_published_ones() -> None:
    times = PolynomialTimes()
    assert times.step_ms(8192, 0, 0, 0, 0.5) == pytest.approx(169.135, abs=0.01)
    assert times.step_ms(0, 0, 3, 9, 0.5) == pytest.approx(26.31, abs=0.01)
    assert times.step_ms(8192, 0, 3, 9, 0.5) == pytest.approx(169.135 + 26.31, abs=0.01)


@pytest.mark.parametrize("times", [TIMES, PolynomialTimes(), ModelTimes(LinearStepTime())])
def test_times_of_several_steps_are_those_of_each(times: PolynomialTimes | ModelTimes) -> None:
    several = times.decodes_ms(3, 700, 0.25, 5)
    assert several == [times.step_ms(0, 0, 3, 700 + 3 * step, 0.25) for step in range(5)]


def test_a_step_time_model_can_time_a_plant() -> None:
    model = LinearStepTime(fixed_ms=4.0, prefill_token_ms=1.0, prefill_context_ms=0.0, decode_context_ms=0.0)
    record = simulate(Scene(stages=[stage(times=ModelTimes(model))]), Trace([TracedRequest(0.0, 32, 3)]))
    (only,) = outcomes_of(record)
    assert (only.ttft_ms, only.tpot_ms) == (pytest.approx(32), pytest.approx(4))


def test_progress_is_told_and_samples_stay_few() -> None:
    told: list[tuple[float, int]] = []
    trace = Trace([TracedRequest(n * 1.0, 8, 2) for n in range(500)])
    record = simulate(aggregated(), trace, progress=lambda at, done: told.append((at, done)))
    assert told == sorted(told)
    assert told[-1][1] == 500
    assert 100 < len(record.stages[0].samples) < 2000
    busy_s = sum(sample.busy_share for sample in record.stages[0].samples) * 499 / 400
    assert busy_s == pytest.approx(record.stages[0].busy_s, rel=0.05)


def test_the_collector_is_as_it_was_after_a_run() -> None:
    before = gc.get_threshold()
    simulate(aggregated(), Trace([TracedRequest(0.0, 8, 2)]))
    assert gc.get_threshold() == before


def test_what_cannot_be_simulated_is_said() -> None:
    with pytest.raises(ValueError, match="no requests"):
        simulate(aggregated(), Trace([]))
    with pytest.raises(ConfigError, match="stages"):
        simulate(Scene(stages=[]), Trace([TracedRequest(0.0, 8, 2)]))


def test_quantiles_interpolate() -> None:
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.75, 1.0)] == [1.0, 2.0, 3.0, 4.0]
