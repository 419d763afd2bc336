"""The words between a sequence's flow and its shell.

Events are past tense facts that the shell tells the flow; instructions are what the flow tells the shell to
do. It must not know how either is done.
"""

from __future__ import annotations

import msgspec

from tokenmill.errors import BadRequest, Overloaded, TokenmillError, WorkerFailed
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.items import Failed, FinishReason, Item, TokenLogprobs

_RETRY_AFTER_S = 1.0

# Events ------------------------------------------------------------------------------------------


class Routed(msgspec.Struct, frozen=True):
    """Workers were chosen. Without ``prefill_worker``, ``decode_worker`` does it all."""

    decode_worker: WorkerId
    prefill_worker: WorkerId | None = None


class NoWorkerFound(msgspec.Struct, frozen=True):
    """Nobody can take the sequence, and waiting is over."""

    message: str = "no worker is ready"


class Received(msgspec.Struct, frozen=True, gc=False):
    """An item came on a stream."""

    stream: int
    item: Item


class StreamLost(msgspec.Struct, frozen=True):
    """A stream ended without ``Finished`` or ``Failed``, most often because the connection broke."""

    stream: int
    error: TokenmillError


class StopHit(msgspec.Struct, frozen=True):
    """The text shows a stop string: what follows is not wanted."""


class ClientGone(msgspec.Struct, frozen=True):
    """Nobody reads any more."""


class DeadlinePassed(msgspec.Struct, frozen=True):
    """The request has taken too long."""

    error: TokenmillError


FlowEvent = Routed | NoWorkerFound | Received | StreamLost | StopHit | ClientGone | DeadlinePassed


# Instructions ------------------------------------------------------------------------------------


class Route(msgspec.Struct, frozen=True):
    """Choose workers, none of ``excluded``, and answer with ``Routed`` or ``NoWorkerFound``. ``may_wait``:
    a worker may be waited for."""

    excluded: frozenset[WorkerId]
    may_wait: bool


class Open(msgspec.Struct, frozen=True):
    """Open a stream to ``worker`` with ``request``, whose role says what is asked of it."""

    stream: int
    worker: WorkerId
    request: GenerateRequest


class Cancel(msgspec.Struct, frozen=True):
    """Nothing more is wanted on this stream."""

    stream: int


class DeliverPrompt(msgspec.Struct, frozen=True):
    """Log probabilities of the prompt's tokens, at most once."""

    logprobs: list[TokenLogprobs | None]


class Deliver(msgspec.Struct, frozen=True):
    """New tokens, each exactly once and in order. The last ``hidden`` of them ended the sequence and do not
    belong into the text."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] | None
    hidden: int = 0


class Complete(msgspec.Struct, frozen=True):
    """The end, a good one. ``output_tokens`` counts all delivered ones."""

    reason: FinishReason
    output_tokens: int
    cached_tokens: int


class Abort(msgspec.Struct, frozen=True):
    """The end, a bad one."""

    error: TokenmillError


FlowInstruction = Route | Open | Cancel | DeliverPrompt | Deliver | Complete | Abort


class WorkerRefused(WorkerFailed):
    """A worker's ``Failed`` passed on: its own status and code."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.own_code = failed.code
        self.own_status = failed.status


def error_of(failed: Failed) -> TokenmillError:
    """Return the error that a client should see for a worker's ``Failed``."""
    if failed.status == Overloaded.status:
        return Overloaded(failed.message, retry_after_s=_RETRY_AFTER_S)
    if failed.status == BadRequest.status:
        return BadRequest(failed.message)
    return WorkerRefused(failed)
