from __future__ import annotations

import pytest

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.simulate.disaggregated import DisaggregatedConfig, DisaggregatedPlant, Stage
from tokenmill.simulate.report import Journal
from tokenmill.simulate.timing import ModelTimes
from tokenmill.simulate.traces import Trace, TracedRequest

TIMES = LinearStepTime(
    fixed_ms=10, prefill_token_ms=0.1, prefill_context_ms=0, decode_sequence_ms=0, decode_context_ms=0
)
STEP_MS = 10.0


def stage(role, workers=1, budget=1000, blocks=4000):
    batching = BatchingConfig(
        total_blocks=blocks, max_model_len=50_000, role=role, token_budget=2000, prefill_budget=budget
    )
    return Stage(workers=workers, batching=batching, times=ModelTimes(TIMES))


def serve(mode, *requests, decode=1, **settings):
    journal = Journal()
    config = DisaggregatedConfig(
        stages=[stage(Role.PREFILL), stage(Role.DECODE, decode)],
        transfer_fixed_ms=settings.pop("transfer_fixed_ms", 2.0),
        transfer_token_ms=settings.pop("transfer_token_ms", 0.01),
        message_delay_s=0.0,
        **settings,
    )
    plant = DisaggregatedPlant(config, Router(RouterSettings(prefill=mode), seed=1), journal=journal)
    figures = plant.run(Trace([TracedRequest(*request) for request in requests]))
    for worker in plant.workers:
        worker.validate_idle()
    return plant, figures, journal.outcomes()


def test_local_a_prompt_is_computed_in_the_decode_workers_chunks():
    plant, figures, (one,) = serve("local", (0.0, 3000, 5))
    assert (plant.local, plant.remote, figures.refused) == (1, 0, 0)
    assert one.ttft_ms == pytest.approx(3 * 100)
    assert one.whole_ms == pytest.approx(3 * 100 + 4 * STEP_MS)


def test_remote_early_only_the_last_chunk_is_waited_for():
    plant, _, (one,) = serve("remote", (0.0, 3000, 5))
    assert (plant.local, plant.remote) == (0, 1)
    assert one.ttft_ms == pytest.approx(3 * 100)
    assert one.whole_ms == pytest.approx(3 * 100 + 1000 * 0.01 + 2.0 + 4 * STEP_MS)


def test_remote_late_the_whole_prompt_is_waited_for():
    _, _, (one,) = serve("remote", (0.0, 3000, 5), early_handoff=False)
    assert one.ttft_ms == pytest.approx(3 * 100)
    assert one.whole_ms == pytest.approx(3 * 100 + 3000 * 0.01 + 2.0 + 4 * STEP_MS)


def test_a_link_slower_than_the_prefill_is_the_bottleneck():
    _, _, (one,) = serve("remote", (0.0, 3000, 5), transfer_token_ms=1.0)
    assert one.whole_ms == pytest.approx(100 + 3000 * 1.0 + 2.0 + 4 * STEP_MS)


def test_a_link_moves_one_cache_after_the_other():
    _, _, (one, two) = serve("remote", (0.0, 1000, 2), (0.0, 1000, 2), transfer_token_ms=1.0)
    assert two.whole_ms == pytest.approx(one.whole_ms + 1000, abs=STEP_MS)
    _, _, (one, two) = serve("remote", (0.0, 1000, 2), (0.0, 1000, 2), transfer_token_ms=1.0, decode=2)
    assert two.whole_ms == pytest.approx(one.whole_ms + 100, abs=STEP_MS)


def test_one_token_needs_no_decode_worker():
    _, _, (one,) = serve("remote", (0.0, 1000, 1))
    assert one.whole_ms == one.ttft_ms == pytest.approx(100)


def test_what_the_decode_worker_has_cached_is_not_moved_again():
    ids = tuple(range(1, 3))
    requests = [(0.0, 1000, 3, ids), (10.0, 1000, 3, ids)]
    _, _, (first, second) = serve("remote", *requests, transfer_token_ms=0.5)
    assert first.whole_ms > 100 + 500
    assert second.whole_ms < 100 + 50


def test_the_workers_metrics_tell_the_links_speed():
    requests = [(0.2 * number, 500, 20) for number in range(100)]
    plant, _, _ = serve("auto", *requests, transfer_token_ms=0.02, transfer_fixed_ms=3.0)
    metrics = plant.workers[1].metrics()
    assert metrics.handoffs_in_total == plant.remote > 0
    spent_ms = metrics.handoffs_in_total * 3.0 + metrics.transfer_tokens_total * 0.02
    assert metrics.transfer_ms_total == pytest.approx(spent_ms)


def test_equal_seeds_give_equal_runs():
    requests = [(0.05 * number, 100 + 37 * number % 3000, 30) for number in range(60)]
    runs = [serve("auto", *requests, decode=2)[1] for _ in range(2)]
    assert runs[0] == runs[1]


def test_auto_is_no_worse_than_either_where_each_loses():
    """Long prompts beside many decodes want a prefill worker; a burst too large for one wants both."""
    answers = [(0.0, 16, 400)] * 30
    bursts = [(1.0 + 0.001 * number, 2000, 40) for number in range(30)]
    costs = {}
    for mode in ("local", "remote", "auto"):
        # As ``PathWeights`` has it: what comes after the first token counts half.
        costs[mode] = sum(each.ttft_ms + each.whole_ms for each in serve(mode, *answers, *bursts)[2])
    assert costs["auto"] < 1.03 * min(costs["local"], costs["remote"])
