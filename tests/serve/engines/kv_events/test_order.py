"""The order of KV event messages: each once, in order, or everything anew."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.serve.engines.kv_events.order import MessageOrder, Verdict
from tokenmill.serve.engines.kv_events.wire import EventBatch


def batch(number: int) -> EventBatch:
    return EventBatch(sequence=number, rank=0, events=[])


def numbers(batches: list[EventBatch]) -> list[int]:
    return [item.sequence for item in batches]


def test_in_order() -> None:
    order = MessageOrder()
    assert [numbers(order.take(batch(i))[1]) for i in range(3)] == [[0], [1], [2]]


def test_old_ones_are_dropped() -> None:
    order = MessageOrder(expected=5)
    assert order.take(batch(4)) == (Verdict.APPLY, [])


def test_a_gap_is_filled_by_a_replay() -> None:
    order = MessageOrder()
    order.take(batch(0))
    assert order.take(batch(3)) == (Verdict.REPLAY, [])
    assert order.take(batch(4)) == (Verdict.APPLY, [])
    lost, ready = order.replayed([batch(1), batch(2), batch(3)])
    assert (lost, numbers(ready)) == (False, [1, 2, 3, 4])
    assert order.expected == 5


def test_what_is_gone_for_good_means_a_new_start() -> None:
    order = MessageOrder()
    order.take(batch(0))
    order.take(batch(5))
    order.take(batch(6))
    lost, ready = order.replayed([batch(3), batch(4), batch(5)])
    assert (lost, numbers(ready)) == (True, [3, 4, 5, 6])


@given(
    total=st.integers(1, 40),
    dropped=st.sets(st.integers(0, 39)),
    kept=st.integers(0, 39),
    answers_after=st.integers(0, 5),
)
def test_every_message_once_and_no_gap_goes_unseen(
    total: int, dropped: set[int], kept: int, answers_after: int
) -> None:
    """``kept``: the server's replay reaches back to this number."""
    order = MessageOrder()
    known: list[int] = []
    waiting: int | None = None

    def apply(lost: bool, ready: list[EventBatch]) -> None:
        if lost:
            known.clear()
        known.extend(numbers(ready))

    for number in range(total):
        if number not in dropped:
            verdict, ready = order.take(batch(number))
            apply(False, ready)
            if verdict is Verdict.REPLAY:
                assert waiting is None
                waiting = answers_after
        if waiting is not None:
            if waiting == 0:
                first = max(order.expected, kept)
                apply(*order.replayed([batch(i) for i in range(first, number + 1)]))
                waiting = None
            else:
                waiting -= 1
    assert known == list(range(known[0], known[0] + len(known))) if known else True
