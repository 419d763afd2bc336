from __future__ import annotations

import pytest

from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.router.paths import (
    LOCAL,
    REMOTE,
    Path,
    PathWeights,
    Side,
    better,
    local_path,
    remote_path,
)

TIMES = LinearStepTime()
WEIGHTS = PathWeights()
FILL = Side(TIMES, chunk_tokens=2048)
IDLE = Side(TIMES)
BUSY = Side(TIMES, decoding=40, decode_context=40_000)


def fast(tokens: float) -> float:
    return 1.0 + 0.013 * tokens


def slow(tokens: float) -> float:
    return 50.0 + 0.5 * tokens


def local(tokens, decode=IDLE):
    return local_path(tokens, decode, WEIGHTS)


def remote(tokens, prefill=FILL, decode=IDLE, transfer_ms=fast, *, early=True):
    return remote_path(tokens, prefill, decode, transfer_ms, WEIGHTS, early_handoff=early)


def chosen(tokens, prefill=FILL, decode=IDLE, transfer_ms=fast, *, early=True):
    return better([local(tokens, decode), remote(tokens, prefill, decode, transfer_ms, early=early)]).kind


def test_alone_nothing_is_gained_by_a_handoff():
    for tokens in (1, 100, 1000, 10_000):
        assert chosen(tokens) == LOCAL


def test_a_long_prompt_does_not_slow_many_decodes_and_a_short_one_does_not():
    assert chosen(4000, decode=BUSY) == REMOTE
    assert chosen(100, prefill=FILL._replace(queue_tokens=1000), decode=BUSY) == LOCAL
    assert local(100, BUSY).terms["slowed decodes"] == pytest.approx(0.0, abs=1.0)
    assert local(4000, BUSY).terms["slowed decodes"] > WEIGHTS.later_tokens * 1000


def test_a_full_prefill_worker_is_passed_by():
    full = FILL._replace(queue_tokens=100_000)
    assert chosen(4000, prefill=full, decode=BUSY) == LOCAL
    assert remote(4000, full).terms["queue"] > 2000


def test_a_queue_at_the_decode_worker_counts_as_well():
    assert chosen(1000, decode=IDLE._replace(queue_tokens=5000)) == REMOTE


def test_cached_tokens_count_on_their_side():
    assert chosen(4000, decode=BUSY._replace(cached_tokens=3950)) == LOCAL
    assert chosen(4000, prefill=FILL._replace(cached_tokens=3950), decode=BUSY) == REMOTE
    lacking = remote(4000, decode=BUSY, early=False).terms["transfer"]
    assert remote(4000, decode=BUSY._replace(cached_tokens=3900), early=False).terms["transfer"] < lacking


def test_a_slow_link_makes_it_local_and_an_early_handoff_hides_a_fast_one():
    few = BUSY._replace(decoding=4, decode_context=4000)
    assert chosen(2000, decode=few) == REMOTE
    assert chosen(2000, decode=few, transfer_ms=slow) == LOCAL
    early, late = remote(8000).terms["transfer"], remote(8000, early=False).terms["transfer"]
    assert early < 0.4 * late


def test_a_link_that_others_use_is_waited_for():
    waiting = BUSY._replace(incoming_tokens=100_000)
    assert remote(2000, decode=waiting).terms["transfer"] > WEIGHTS.later_tokens * 1000
    assert remote(2000, decode=waiting).total_ms > remote(2000, decode=BUSY).total_ms


def test_room_delays_the_first_token_only_where_it_is_computed():
    full = BUSY._replace(free_tokens=0)
    waits = local(4000, full).terms["room"]
    assert waits > 0
    assert remote(4000, decode=full).terms["room"] < waits
    assert local(4000, BUSY._replace(free_tokens=4000)).terms["room"] == 0
    assert local(4000, full._replace(cached_tokens=4000)).terms["room"] == 0


def test_the_start_of_a_prompt_shares_the_queues_last_step():
    """50 tokens that wait and 50 new ones fit one step, which takes as long as for either alone."""
    both = local(50, IDLE._replace(queue_tokens=50))
    assert both.total_ms == pytest.approx(local(100).total_ms, rel=0.01)
    assert both.terms["prefill"] == pytest.approx(0.0, abs=0.1)


def test_what_is_predicted_for_an_idle_worker_is_what_its_steps_take():
    steps_ms = sum(TIMES.prefill_ms(512, 512 * start + 512 * 513 / 2) for start in range(0, 4096, 512))
    assert local(4096).total_ms == pytest.approx(steps_ms, rel=0.01)


@pytest.mark.parametrize("queue", [0, 300, 5000])
@pytest.mark.parametrize("decoding", [0, 7])
def test_more_never_costs_less(queue, decoding):
    side = IDLE._replace(queue_tokens=queue, decoding=decoding, decode_context=1000 * decoding)
    lengths = [1, 10, 100, 511, 512, 513, 1000, 3000, 20_000]
    for predict in (local, lambda tokens, side: remote(tokens, side, side)):
        totals = [predict(tokens, side).total_ms for tokens in lengths]
        assert totals == sorted(totals)
        longer = [predict(n, side._replace(queue_tokens=queue + 1000)).total_ms for n in lengths]
        assert all(before <= after for before, after in zip(totals, longer, strict=True))


def test_terms_add_up_and_are_never_negative():
    for path in (local(4000, BUSY), remote(4000, FILL, BUSY), local(1, IDLE), remote(1, FILL, IDLE)):
        assert path.total_ms == pytest.approx(sum(path.terms.values()))
        assert min(path.terms.values()) >= 0


def test_a_setting_decides_over_the_prediction_where_it_can():
    near, far = Path(LOCAL, "a", {}, 1.0), Path(REMOTE, "b", {}, 2.0)
    assert better([near, far]) is near
    assert better([near, far], REMOTE) is far
    assert better([far], LOCAL) is far
    with pytest.raises(ValueError, match="empty"):
        better([])


def test_ties_go_to_the_local_way_then_to_the_first():
    same = [Path(REMOTE, "a", {}, 1.0), Path(LOCAL, "b", {}, 1.0), Path(LOCAL, "c", {}, 1.0)]
    assert better(same).key == "b"
    assert better(same, REMOTE).key == "a"
