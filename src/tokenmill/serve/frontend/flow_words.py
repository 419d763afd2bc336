"""The words between a sequence's flow and its shell.

Events are past tense facts that the shell tells the flow; instructions are what the flow tells the shell to
do. It must not know how either is done.
"""

from __future__ import annotations

from enum import Enum, auto

import msgspec

from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.items import FinishReason, Item, TokenLogprobs
from tokenmill.serve.frontend.migration import Migration, NotMoved

# States ------------------------------------------------------------------------------------------


class FlowState(Enum):
    """Where a sequence is."""

    ROUTING = auto()
    """Waiting to be told which worker."""
    AGGREGATED = auto()
    """One worker does it all."""
    PREFILLING = auto()
    """The prefill worker has it; the decode worker does not know yet."""
    HANDING_OVER = auto()
    """Both have it."""
    TRANSFERRING = auto()
    """The prefill worker has done its part; the decode worker may still be fetching the cache."""
    DECODING = auto()
    """The decode worker has it."""
    ENDED = auto()
    """Nothing is open, nothing more will be said."""


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
    a worker may be waited for. ``moved``: what the sequence left, if this is not the first time."""

    excluded: frozenset[WorkerId]
    may_wait: bool
    moved: Migration | None = None

    @property
    def replay(self) -> bool:
        """Whether the sequence had a worker before."""
        return self.moved is not None or bool(self.excluded)


class Open(msgspec.Struct, frozen=True):
    """Open a stream to ``worker`` with ``request``, whose role says what is asked of it."""

    stream: int
    worker: WorkerId
    request: GenerateRequest


class Cancel(msgspec.Struct, frozen=True):
    """Nothing more is wanted on this stream."""

    stream: int


class Watch(msgspec.Struct, frozen=True):
    """Tell, as ``StreamLost`` of ``stream``, when ``worker`` is lost. Nothing is opened there."""

    stream: int
    worker: WorkerId


class HandedOver(msgspec.Struct, frozen=True):
    """The decode worker speaks: it has the cache, or has made its own. ``watch``: need not be watched now."""

    watch: int | None = None


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
    """The end, a bad one. ``not_moved``: why it is not continued elsewhere, where it might have been."""

    error: TokenmillError
    not_moved: NotMoved | None = None


FlowInstruction = Route | Open | Watch | HandedOver | Cancel | DeliverPrompt | Deliver | Complete | Abort
