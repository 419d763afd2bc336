"""What is taken in and what is refused."""

from __future__ import annotations

import pytest

from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import BatchingConfig, Finish, Reject, RejectCode
from tokenmill.errors import ConfigError
from tokenmill.protocol.items import FinishReason


def codes(instructions: list) -> list[RejectCode]:
    assert all(isinstance(i, Reject) for i in instructions)
    return [i.code for i in instructions]


def test_context_length(drive) -> None:
    engine = drive(max_model_len=10)
    assert codes(engine.add("a", 10)) == [RejectCode.TOO_LONG]
    assert "shorten the prompt" in engine.said[-1].message
    assert engine.add("b", 9) == []


def test_kv_room(drive) -> None:
    engine = drive(total_blocks=2, block_tokens=4)
    assert codes(engine.add("a", 8)) == [RejectCode.NO_ROOM]
    assert engine.add("b", 7) == []


def test_full_queue(drive) -> None:
    engine = drive(max_waiting=2)
    assert engine.add("a", 3) == engine.add("b", 3) == []
    assert codes(engine.add("c", 3)) == [RejectCode.QUEUE_FULL]
    engine.plan()
    assert engine.add("c", 3) == []


def test_duplicate(drive) -> None:
    engine = drive()
    engine.add("a", 3)
    assert codes(engine.add("a", 3)) == [RejectCode.DUPLICATE]
    engine.cancel("a")
    assert engine.add("a", 3) == []


def test_a_replay_that_had_ended_is_told_so(drive) -> None:
    engine = drive(max_model_len=10)
    assert engine.add("a", 3, output=[5, 7], stop_ids=frozenset({7})) == [Finish("a", FinishReason.STOP, 7)]
    assert engine.add("b", 3, output=[5, 7], max_tokens=2) == [Finish("b", FinishReason.LENGTH)]
    assert engine.add("c", 8, output=[5, 7]) == [Finish("c", FinishReason.LENGTH)]
    assert engine.add("d", 3, max_tokens=0) == [Finish("d", FinishReason.LENGTH)]
    assert engine.add("e", 3, output=[7], stop_ids=frozenset({7}), min_tokens=2) == []
    assert engine.scheduler.metrics(0.0).waiting == 1


def test_an_empty_prompt_is_the_callers_bug(drive) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        drive().add("a", [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_blocks", 0),
        ("max_model_len", 1),
        ("block_tokens", 0),
        ("token_budget", 0),
        ("prefill_budget", 0),
        ("join_tokens", 0),
        ("max_sequences", 0),
        ("max_waiting", 0),
        ("watermark", 1.0),
    ],
)
def test_limits_that_cannot_work(field: str, value: float) -> None:
    limits = {"total_blocks": 8, "max_model_len": 100} | {field: value}
    with pytest.raises(ConfigError, match=f"{field} is {value}: ") as error:
        Scheduler(BatchingConfig(**limits))
    assert error.value.param == field
