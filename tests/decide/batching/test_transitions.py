"""The table of states."""

from __future__ import annotations

import itertools

import pytest

from tokenmill.decide.batching.transitions import TRANSITIONS, IllegalTransition, move
from tokenmill.decide.batching.types import Sequence, SequenceRequest, SequenceState
from tokenmill.protocol.ids import RequestId


def sequence(state: SequenceState) -> Sequence:
    request = SequenceRequest(request_id=RequestId("r"), prompt=[1], max_tokens=1)
    return Sequence(request=request, tokens=[1], prompt_len=1, arrival=0.0, state=state)


@pytest.mark.parametrize(("before", "after"), list(itertools.product(SequenceState, repeat=2)))
def test_only_what_stands_in_the_table(before: SequenceState, after: SequenceState) -> None:
    mover = sequence(before)
    if (before, after) in TRANSITIONS:
        move(mover, after)
        assert mover.state is after
        return
    with pytest.raises(IllegalTransition, match=f"{before.name} -> {after.name}"):
        move(mover, after)
    assert mover.state is before


def test_every_state_is_reached_and_only_the_last_is_final() -> None:
    assert {after for _, after in TRANSITIONS} == set(SequenceState)
    assert set(SequenceState) - {before for before, _ in TRANSITIONS} == {SequenceState.FINISHED}
