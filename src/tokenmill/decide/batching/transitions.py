"""The life of a sequence as data: every change of state goes through ``move``.

It must not know what a change does to blocks or queues; ``batch`` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tokenmill.decide.batching.types import Sequence, SequenceState

TRANSITIONS: Final[Mapping[tuple[SequenceState, SequenceState], str]] = MappingProxyType(
    {
        (SequenceState.WAITING, SequenceState.RUNNING): "admitted to be computed here",
        (SequenceState.WAITING, SequenceState.RECEIVING): "admitted, and a transfer fills its blocks",
        (SequenceState.WAITING, SequenceState.FINISHED): "cancelled in the queue, or nothing left to do",
        (SequenceState.RECEIVING, SequenceState.RUNNING): "its KV came, or was lost and is computed here",
        (SequenceState.RECEIVING, SequenceState.FINISHED): "cancelled and its transfer has ended, or done",
        (SequenceState.RUNNING, SequenceState.WAITING): "preempted: its blocks went to one before it",
        (SequenceState.RUNNING, SequenceState.EXPORTED): "ended here while its offer is still open",
        (SequenceState.RUNNING, SequenceState.FINISHED): "ended",
        (SequenceState.EXPORTED, SequenceState.FINISHED): "its receiver is done, or the lease ended",
    }
)
"""The legal changes of state and what each means; any other is a bug."""


class IllegalTransition(RuntimeError):
    """An event arrived that the sequence's state does not allow: a bug of the caller or of this room."""


def move(sequence: Sequence, to: SequenceState) -> None:
    """Change a sequence's state; raises IllegalTransition when the table does not allow it."""
    if (sequence.state, to) not in TRANSITIONS:
        raise IllegalTransition(
            f"request {sequence.request.request_id}: {sequence.state.name} -> {to.name} is not a legal change"
        )
    sequence.state = to
