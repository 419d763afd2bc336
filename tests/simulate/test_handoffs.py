"""Plants whose caches move: times that can be reckoned by hand, and links that are shared."""

from __future__ import annotations

import pytest
from tests.simulate.scenes import state

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.record import RunRecord
from tokenmill.simulate.report import Outcome, outcomes_of
from tokenmill.simulate.scene import LinkScene, LinkSlow, Scene, SceneEvent, StageScene
from tokenmill.simulate.timing import ModelTimes
from tokenmill.simulate.traces import Trace, TracedRequest

TIMES = LinearStepTime(
    fixed_ms=10, prefill_token_ms=0.1, prefill_context_ms=0, decode_sequence_ms=0, decode_context_ms=0
)
STEP_MS = 10.0
Request = tuple[float, int, int] | tuple[float, int, int, tuple[int, ...]]


def stage(role: Role, workers: int = 1, hosts: tuple[str, ...] = ()) -> StageScene:
    batching = BatchingConfig(total_blocks=4000, max_model_len=50_000, token_budget=2000, prefill_budget=1000)
    return StageScene(
        name=role.value,
        role=role,
        workers=workers,
        batching=batching,
        times=ModelTimes(TIMES),
        hosts=hosts,
        kv_bytes_per_token=1000.0,
    )


def scene(
    mode: str,
    *,
    prefill: int = 1,
    decode: int = 1,
    token_ms: float = 0.01,
    fixed_ms: float = 2.0,
    early: bool = True,
    hosts: tuple[str, ...] = (),
    events: tuple[SceneEvent, ...] = (),
) -> Scene:
    return Scene(
        stages=[stage(Role.PREFILL, prefill, hosts), stage(Role.DECODE, decode, hosts)],
        links=LinkScene(bytes_per_s=1e6 / token_ms, latency_s=fixed_ms / 1000),
        same_host=LinkScene(bytes_per_s=1e12, latency_s=0.0),
        router=RouterSettings(prefill=mode),
        message_delay_s=1e-9,
        early_handoff=early,
        events=list(events),
        seed=1,
    )


def serve(described: Scene, *requests: Request) -> tuple[RunRecord, list[Outcome]]:
    run = simulate(described, Trace([TracedRequest(*request) for request in requests]))
    assert all(each.served for each in run.requests)
    return run, outcomes_of(run)


def remote(run: RunRecord) -> int:
    return sum(each.prefill_worker != each.decode_worker for each in run.requests)


def test_local_a_prompt_is_computed_in_the_decode_workers_chunks() -> None:
    run, (one,) = serve(scene("local"), (0.0, 3000, 5))
    assert (remote(run), run.handoffs) == (0, 0)
    assert one.ttft_ms == pytest.approx(3 * 100)
    assert one.whole_ms == pytest.approx(3 * 100 + 4 * STEP_MS)


def test_remote_early_only_the_last_chunk_is_waited_for() -> None:
    run, (one,) = serve(scene("remote"), (0.0, 3000, 5))
    assert (remote(run), run.handoffs, run.handoff_bytes) == (1, 1, 3_000_000)
    assert one.ttft_ms == pytest.approx(3 * 100)
    assert one.whole_ms == pytest.approx(3 * 100 + 1000 * 0.01 + 2.0 + 4 * STEP_MS)
    assert run.gaps.count == 4


def test_remote_late_the_whole_prompt_is_waited_for() -> None:
    _, (one,) = serve(scene("remote", early=False), (0.0, 3000, 5))
    assert one.ttft_ms == pytest.approx(3 * 100)
    assert one.whole_ms == pytest.approx(3 * 100 + 3000 * 0.01 + 2.0 + 4 * STEP_MS)


def test_a_link_slower_than_the_prefill_is_the_bottleneck() -> None:
    _, (one,) = serve(scene("remote", token_ms=1.0), (0.0, 3000, 5))
    assert one.whole_ms == pytest.approx(100 + 3000 * 1.0 + 2.0 + 4 * STEP_MS)


def test_transfers_at_once_share_a_port() -> None:
    both = (0.0, 1000, 2), (0.0, 1000, 2)
    # Two prefill workers end at once, and both send to one decode worker: each at half the speed.
    _, outcomes = serve(scene("remote", prefill=2, token_ms=1.0), *both)
    assert [each.whole_ms for each in outcomes] == pytest.approx([100 + 2000 + 2 + STEP_MS] * 2)
    _, outcomes = serve(scene("remote", prefill=2, decode=2, token_ms=1.0), *both)
    assert [each.whole_ms for each in outcomes] == pytest.approx([100 + 1000 + 2 + STEP_MS] * 2)
    # One prefill worker computes one after the other; the second transfer is alone in the end.
    _, (one, two) = serve(scene("remote", token_ms=1.0), *both)
    assert one.whole_ms == pytest.approx(100 + 100 + 900 * 2 + 2 + STEP_MS, abs=STEP_MS)
    assert two.whole_ms == pytest.approx(100 + 2000 + 2 + STEP_MS, abs=STEP_MS)


def test_inside_a_host_nothing_is_shared_with_others() -> None:
    _, (one,) = serve(scene("remote", token_ms=1.0, hosts=("h",)), (0.0, 1000, 2))
    assert one.whole_ms == pytest.approx(100 + STEP_MS, abs=0.01)


def test_a_slow_link_carries_less_while_it_is_slow() -> None:
    slow = LinkSlow(at_s=0.1, until_s=0.6, factor=5.0)
    _, (one,) = serve(scene("remote", token_ms=1.0, events=(slow,)), (0.0, 1000, 2))
    assert one.whole_ms == pytest.approx(100 + 500 + 900 + 2 + STEP_MS)


def test_one_token_needs_no_decode_worker() -> None:
    run, (one,) = serve(scene("remote"), (0.0, 1000, 1))
    assert one.whole_ms == one.ttft_ms == pytest.approx(100)
    assert run.handoffs == 0


def test_what_the_decode_worker_has_cached_is_not_moved_again() -> None:
    ids = (1, 2)
    _, (first, second) = serve(scene("remote", token_ms=0.5), (0.0, 1000, 3, ids), (10.0, 1000, 3, ids))
    assert first.whole_ms > 100 + 500
    assert second.whole_ms < 100 + 50


def test_equal_seeds_give_equal_runs() -> None:
    requests = [(0.05 * number, 100 + 37 * number % 3000, 30) for number in range(60)]
    runs = [serve(scene("auto", decode=2), *requests)[0] for _ in range(2)]
    assert remote(runs[0]) > 0
    assert state(runs[0]) == state(runs[1])


def test_auto_is_no_worse_than_either_where_each_loses() -> None:
    """Long prompts beside many decodes want a prefill worker; a burst too large for one wants both."""
    answers: list[Request] = [(0.0, 16, 400)] * 30
    bursts: list[Request] = [(1.0 + 0.001 * number, 2000, 40) for number in range(30)]
    costs = {}
    for mode in ("local", "remote", "auto"):
        # As ``PathWeights`` has it: what comes after the first token counts half.
        costs[mode] = sum(each.ttft_ms + each.whole_ms for each in serve(scene(mode), *answers, *bursts)[1])
    assert costs["auto"] < 1.03 * min(costs["local"], costs["remote"])
