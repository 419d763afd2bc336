"""The life of one request for text, without I/O: facts in, instructions out.

Exists beside ``flow`` because text cannot be continued: what a server has begun no other one would go on
with. So a request moves only as long as nothing of its answer was delivered. It must not know sockets, HTTP,
clocks or what the text says.
"""

from __future__ import annotations

import msgspec

from tokenmill.errors import TokenmillError, WorkerFailed
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.items import Failed, Item
from tokenmill.protocol.text import TextFinished, TextPieces, TextRequest, TextUsage
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    DeadlinePassed,
    NoWorkerFound,
    Open,
    Route,
    Routed,
    StreamLost,
)
from tokenmill.serve.frontend.migration import (
    Attempts,
    Migration,
    MigrationLimits,
    MigrationReason,
    NotMoved,
    Phase,
    error_of,
    reason_of,
    with_reason,
)

_NO_SAMPLING = Sampling(max_tokens=0)
"""How tokens are chosen stands in the client's own fields."""


class DeliverText(msgspec.Struct, frozen=True):
    """New pieces, each exactly once and in order."""

    pieces: list[bytes]


class CompleteText(msgspec.Struct, frozen=True):
    """The end, a good one, with the last pieces."""

    pieces: list[bytes]
    reason: str
    usage: TextUsage | None


TextEvent = Routed | NoWorkerFound | StreamLost | ClientGone | DeadlinePassed
TextInstruction = Route | Open | Cancel | DeliverText | CompleteText | Abort


class TextFlow:
    """One request. Mutated only through ``handle`` and ``received``."""

    def __init__(
        self, request_id: RequestId, text: TextRequest, *, limits: MigrationLimits, priority: int = 0
    ) -> None:
        self.over = False
        self.delivered = 0
        """Pieces that were delivered."""
        self._request_id = request_id
        self._text = text
        self._priority = priority
        self._attempts = Attempts(limits)
        self._streams = 0
        self._stream: int | None = None
        self._worker: WorkerId | None = None

    def begin(self) -> list[TextInstruction]:
        """Return the first instruction."""
        return [Route(self._attempts.excluded, may_wait=True)]

    def handle(self, event: TextEvent) -> list[TextInstruction]:
        """Take one fact; return what is to be done, in order. Facts about streams not open are ignored."""
        if self.over:
            return []
        if isinstance(event, StreamLost):
            return self._lost(event.error) if event.stream == self._stream else []
        if isinstance(event, ClientGone):
            return self._end()
        if isinstance(event, DeadlinePassed):
            moving = self._stream is None and self._attempts.number > 0
            return self._abort(event.error, NotMoved.NO_WORKER if moving else None)
        if self._stream is not None:
            return []
        if isinstance(event, Routed):
            return self._routed(event.decode_worker)
        return self._nobody(event)

    def received(self, stream: int, item: Item) -> list[TextInstruction]:
        """An item came on a stream."""
        if self.over or stream != self._stream:
            return []
        if isinstance(item, Failed):
            if item.retryable:
                return self._lost(error_of(item))
            self._stream = None
            return self._abort(error_of(item))
        if not isinstance(item, TextPieces | TextFinished):
            return self._broken("the worker answered a request for text with tokens")
        if item.index != self.delivered:
            return self._broken("the worker skipped a part of the answer")
        self.delivered += len(item.pieces)
        if isinstance(item, TextPieces):
            return [DeliverText(item.pieces)]
        self._stream = None
        self.over = True
        return [CompleteText(item.pieces, item.reason, item.usage)]

    # Inside --------------------------------------------------------------------------------------------

    def _routed(self, worker: WorkerId) -> list[TextInstruction]:
        self._streams += 1
        self._stream = self._streams
        self._worker = worker
        request = GenerateRequest(
            request_id=self._attempts.id_of(self._request_id),
            prompt=[],
            sampling=_NO_SAMPLING,
            priority=self._priority,
            text=self._text,
        )
        return [Open(self._stream, worker, request)]

    def _nobody(self, event: NoWorkerFound) -> list[TextInstruction]:
        refusal = self._attempts.nobody(event.message)
        if refusal is None:
            return [Route(self._attempts.excluded, may_wait=True)]
        return self._abort(refusal.error, refusal.why)

    def _broken(self, why: str) -> list[TextInstruction]:
        lost = self._stream
        instructions = self._lost(WorkerFailed(why))
        return [*([Cancel(lost)] if lost is not None else []), *instructions]

    def _lost(self, error: TokenmillError) -> list[TextInstruction]:
        """Go on elsewhere, if nothing was delivered yet."""
        assert self._worker is not None
        self._stream = None
        if self.delivered:
            why = "a part of the answer was sent already, and text cannot be continued on another server"
            return self._abort(with_reason(error, why), NotMoved.DELIVERED)
        reason = reason_of(error)
        moved = Migration(
            reason=reason,
            phase=Phase.PREFILL,
            worker=self._worker,
            replayed_tokens=self._text.tokens,
            message=error.message,
        )
        refusal = self._attempts.leave(moved, error)
        if refusal is not None:
            return self._abort(refusal.error, refusal.why)
        # Who is full will be full for a while; who is leaving or lost is being replaced.
        return [Route(self._attempts.excluded, reason is not MigrationReason.REFUSED, moved)]

    def _abort(self, error: TokenmillError, not_moved: NotMoved | None = None) -> list[TextInstruction]:
        return [*self._end(), Abort(error, not_moved)]

    def _end(self) -> list[TextInstruction]:
        cancels: list[TextInstruction] = [] if self._stream is None else [Cancel(self._stream)]
        self._stream = None
        self.over = True
        return cancels
