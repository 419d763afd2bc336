"""The plant: times that can be reckoned by hand, facts that reach the router late, runs that repeat."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tokenmill.decide.batching.types import BatchingConfig, StepPlan
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.kv_events import KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.simulate.plant import Plant, PlantConfig
from tokenmill.simulate.report import Figures, Journal, quantile
from tokenmill.simulate.timing import ModelTimes, PolynomialTimes
from tokenmill.simulate.traces import Trace, TracedRequest

TIMES = PolynomialTimes(prefill=(10.0, 1.0, 0.0), decode=(5.0, 0.0, 0.0))
BATCHING = BatchingConfig(
    total_blocks=64, max_model_len=1024, block_tokens=8, token_budget=64, max_sequences=8, watermark=0.0
)


def run(requests: list[TracedRequest], *, workers: int = 1, policy: str = "kv", **changes: object) -> Figures:
    config = PlantConfig(workers=workers, batching=BATCHING, **changes)  # type: ignore[arg-type]
    router = Router(RouterSettings(policy=policy), seed=0)
    return Plant(config, router, TIMES).run(Trace(requests, prefix_block_tokens=8))


def test_one_request_takes_what_its_steps_take() -> None:
    figures = run([TracedRequest(1.0, 40, 5)])
    assert figures.ttft_mean_ms == pytest.approx(10 + 40)
    assert figures.tpot_mean_ms == figures.itl_p99_ms == pytest.approx(5)
    assert figures.makespan_s == pytest.approx(0.050 + 4 * 0.005)
    assert (figures.requests, figures.refused, figures.prefix_hit) == (1, 0, 0.0)


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


def test_kv_routing_sends_a_prefix_where_it_is_cached() -> None:
    requests = [TracedRequest(float(n), 60, 2, (n % 2, 2 + n % 2, *range(10, 16))) for n in range(20)]
    by_cache, by_turn = run(requests, workers=3), run(requests, workers=3, policy="round-robin")
    assert by_cache.prefix_hit > by_turn.prefix_hit
    assert by_cache.ttft_mean_ms < by_turn.ttft_mean_ms


def test_a_request_that_no_worker_can_hold_is_counted_as_refused() -> None:
    figures = run([TracedRequest(0.0, 2000, 1), TracedRequest(0.0, 8, 1)])
    assert (figures.requests, figures.refused) == (2, 1)


def test_a_run_repeats() -> None:
    requests = [TracedRequest(n * 0.01, 20 + n % 7, 3 + n % 5, (0, n % 3, n)) for n in range(60)]
    assert run(requests, workers=3) == run(requests, workers=3)


@pytest.mark.parametrize("policy", ["kv", "least-loaded", "power-of-two", "round-robin", "random", "session"])
def test_every_policy_serves_all(policy: str) -> None:
    requests = [TracedRequest(n * 0.01, 20, 3, (0, 1 + n % 5, 6 + n)) for n in range(40)]
    figures = run(requests, workers=4, policy=policy)
    assert (figures.requests, figures.refused) == (40, 0)


class Listening(Router):
    """Notes when it hears of what."""

    def __init__(self) -> None:
        super().__init__(RouterSettings(), seed=0)
        self.loads: list[tuple[float, StepMetrics]] = []
        self.events: list[float] = []

    def load_reported(self, worker: WorkerId, metrics: StepMetrics, now: float) -> None:
        self.loads.append((now, metrics))
        super().load_reported(worker, metrics, now)

    def kv_changed(self, worker: WorkerId, batch: KvEvents, now: float) -> bool:
        self.events.append(now)
        return super().kv_changed(worker, batch, now)


def test_the_router_hears_late_and_not_too_often() -> None:
    router = Listening()
    config = PlantConfig(workers=1, batching=BATCHING, message_delay_s=0.002, report_interval_s=0.03)
    Plant(config, router, TIMES).run(Trace([TracedRequest(0.0, 16, 20)]))
    assert router.events[0] == pytest.approx(0.026 + 0.002)
    heard = [at for at, _ in router.loads]
    assert heard[0] == pytest.approx(0.002)
    assert all(later - earlier > 0.0299 for earlier, later in pairwise(heard))
    assert (router.loads[-1][1].running, router.loads[0][1].waiting_prefill_tokens) == (0, 16)


def test_reports_tell_the_time_of_the_step_they_tell_of() -> None:
    router = Listening()
    config = PlantConfig(workers=1, batching=BATCHING, report_interval_s=0.0)
    Plant(config, router, TIMES).run(Trace([TracedRequest(0.0, 100, 3)]))
    told = {m.step: (m.prefill_tokens, m.decode_tokens, m.step_ms) for _, m in router.loads if m.step}
    assert told == {1: (64, 0, 74.0), 2: (36, 0, 46.0), 3: (0, 1, 5.0), 4: (0, 1, 5.0)}


def test_the_polynomials_are_the_published_ones() -> None:
    times = PolynomialTimes()
    assert times.step_ms(StepPlan(1, [], 0, 8192), 0.5) == pytest.approx(169.135, abs=0.01)
    assert times.step_ms(StepPlan(1, [], 3, 0), 0.5) == pytest.approx(26.31, abs=0.01)
    assert times.step_ms(StepPlan(1, [], 3, 8192), 0.5) == pytest.approx(169.135 + 26.31, abs=0.01)


def test_a_step_time_model_can_time_a_plant() -> None:
    model = LinearStepTime(fixed_ms=4.0, prefill_token_ms=1.0, prefill_context_ms=0.0, decode_context_ms=0.0)
    router = Router(RouterSettings(), seed=0)
    config = PlantConfig(workers=1, batching=BATCHING)
    figures = Plant(config, router, ModelTimes(model)).run(Trace([TracedRequest(0.0, 32, 3)]))
    assert (figures.ttft_mean_ms, figures.tpot_mean_ms) == (pytest.approx(32), pytest.approx(4))


def test_quantiles_interpolate() -> None:
    assert [quantile([1.0, 2.0, 4.0], share) for share in (0.0, 0.5, 0.75, 1.0)] == [1.0, 2.0, 3.0, 4.0]


def test_a_journal_without_tokens_has_no_figures() -> None:
    with pytest.raises(ValueError, match="nothing to report"):
        Journal().figures()
