"""The queue's order."""

from __future__ import annotations

import pytest

from tokenmill.decide.batching.tracked import Tracked, track
from tokenmill.decide.batching.types import SequenceRequest
from tokenmill.decide.batching.waiting import WaitingQueue
from tokenmill.protocol.ids import RequestId


def sequence(number: int, priority: int = 0, receives: bool = False) -> Tracked:
    request = SequenceRequest(
        request_id=RequestId(str(number)), prompt=[1] * 5, max_tokens=1, priority=priority, receives=receives
    )
    return track(request, 0.0, number, 100, 4)


def drain(queue: WaitingQueue) -> list[str]:
    names = []
    while (first := queue.first()) is not None:
        queue.remove(first)
        queue.validate()
        names.append(first.request.request_id)
    return names


def test_priority_then_arrival() -> None:
    queue = WaitingQueue()
    for member in [sequence(1), sequence(2, 5), sequence(3, receives=True), sequence(4, 5, receives=True)]:
        queue.push(member)
        queue.validate()
    assert len(queue) == 4
    assert queue.compute_tokens == 10
    assert drain(queue) == ["2", "4", "1", "3"]


def test_one_that_comes_back_has_its_old_place() -> None:
    queue = WaitingQueue()
    first, second, third = sequence(1), sequence(2), sequence(3)
    for member in (first, second, third):
        queue.push(member)
    queue.remove(first)
    queue.push(first)
    assert queue.first() is first
    queue.remove(second)
    assert [member.request.request_id for member in queue] == ["3", "1"]


def test_only_pulled_ones() -> None:
    queue = WaitingQueue()
    queue.push(sequence(1))
    assert queue.first(only_pulled=True) is None
    queue.push(pulled := sequence(2, receives=True))
    assert queue.first(only_pulled=True) is pulled


def test_removing_a_stranger() -> None:
    queue = WaitingQueue()
    queue.push(sequence(1))
    for stranger in (sequence(1), sequence(2), sequence(0)):
        with pytest.raises(ValueError, match="is not waiting"):
            queue.remove(stranger)
