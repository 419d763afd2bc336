r"""The life of one sequence, without I/O: facts in, instructions out.

Exists so that exactly-once delivery, the hand-over from prefill to decode and migration to another worker can
be tested for every order of events. It must not know sockets, text, HTTP, clocks or how workers are chosen.

    ROUTING --Routed--> AGGREGATED --------------------------------> ENDED
       ^        \------> PREFILLING --Offered--> HANDING_OVER          ^
       |                     |                       | prefill ends    |
       |                     |                  TRANSFERRING           |
       |                     |                       | decode speaks   |
       +---- worker lost ----+---------------- DECODING ---------------+
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import msgspec

from tokenmill.errors import TokenmillError, WorkerLost, WorkerStalled
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import Failed, Finished, FinishReason, Item, Offered, PromptScored, Tokens
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    Complete,
    DeadlinePassed,
    Deliver,
    DeliverPrompt,
    FlowEvent,
    FlowInstruction,
    FlowState,
    HandedOver,
    NoWorkerFound,
    Open,
    Received,
    Route,
    Routed,
    StopHit,
    StreamLost,
    Watch,
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
)

_USUAL_LIMITS = MigrationLimits()


class Flow:
    """One sequence. Mutated only through ``handle`` and ``received``.

    Tokens that come from the decode worker before the prefill worker's first one are held back; the bound is
    ``sampling.max_tokens``.
    """

    def __init__(
        self,
        request_id: RequestId,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        limits: MigrationLimits = _USUAL_LIMITS,
        priority: int = 0,
        cache_salt: str = "",
    ) -> None:
        self.state = FlowState.ROUTING
        self._request_id = request_id
        self._prompt = prompt
        self._sampling = sampling
        self._attempts = Attempts(limits)
        self._priority = priority
        self._cache_salt = cache_salt
        self._delivered = array("I")  # four bytes a token, of which there may be very many
        self._cached_tokens: int | None = None
        self._prompt_delivered = False
        self._next_stream = 0
        self._prefill: int | None = None  # while TRANSFERRING, what watches the prefill worker
        self._decode: int | None = None  # the aggregated stream too
        self._prefill_worker: WorkerId | None = None
        self._decode_worker: WorkerId | None = None
        self._attempt_output: list[int] = []
        self._decode_spoke = False
        self._held: list[Tokens | Finished] = []

    @property
    def delivered(self) -> Sequence[int]:
        """The output tokens that were delivered."""
        return self._delivered

    def begin(self) -> list[FlowInstruction]:
        """Return the first instruction."""
        return [Route(self._attempts.excluded, may_wait=True)]

    def handle(self, event: FlowEvent) -> list[FlowInstruction]:
        """Take one fact; return what is to be done, in order. Facts about streams not open are ignored."""
        if self.state is FlowState.ENDED:
            return []
        if type(event) is Received:
            return self.received(event.stream, event.item)
        if isinstance(event, StreamLost):
            if event.stream == self._decode and self._held and type(self._held[-1]) is Finished:
                return []  # it ended well; we have not come to its end yet
            return self._on_lost(event.stream, event.error)
        if isinstance(event, StopHit):
            return [*self._end(), self._completion(FinishReason.STOP)]
        if isinstance(event, ClientGone):
            return self._end()
        if isinstance(event, DeadlinePassed):
            moving = self.state is FlowState.ROUTING and self._attempts.number > 0
            return self._abort(event.error, NotMoved.NO_WORKER if moving else None)
        if self.state is not FlowState.ROUTING:
            return []
        if isinstance(event, Routed):
            return self._on_routed(event)
        assert isinstance(event, NoWorkerFound)
        return self._on_no_worker(event)

    def received(self, stream: int, item: Item) -> list[FlowInstruction]:
        """``handle`` of ``Received``, without the event."""
        if stream not in (self._decode, self._prefill):
            return []
        if type(item) is Tokens and self.goes_on(stream, item):
            return [Deliver(item.tokens, item.logprobs)]
        return self._on_item(stream, item)

    def goes_on(self, stream: int, item: Tokens) -> bool:
        """The way of nearly every token: take what simply continues the sequence, to be delivered as it is.

        False: nothing was taken, ask ``received``.
        """
        if stream != self._decode or self._prefill is not None or item.index != len(self._delivered):
            return False
        self._delivered.extend(item.tokens)
        return True

    def validate(self) -> None:
        """Check what must always hold; for tests."""
        streams = {
            FlowState.ROUTING: (False, False),
            FlowState.AGGREGATED: (False, True),
            FlowState.PREFILLING: (True, False),
            FlowState.HANDING_OVER: (True, True),
            FlowState.TRANSFERRING: (True, True),
            FlowState.DECODING: (False, True),
            FlowState.ENDED: (False, False),
        }
        assert (self._prefill is not None, self._decode is not None) == streams[self.state]
        assert not self._held or self.state is FlowState.HANDING_OVER
        assert len(self._delivered) <= self._sampling.max_tokens

    # Opening -----------------------------------------------------------------------------------------

    def _on_routed(self, event: Routed) -> list[FlowInstruction]:
        self._attempt_output = self._delivered.tolist()
        self._decode_spoke = False
        self._decode_worker = event.decode_worker
        self._prefill_worker = event.prefill_worker
        stream = self._new_stream()
        if event.prefill_worker is None:
            self.state = FlowState.AGGREGATED
            self._decode = stream
            return [Open(stream, event.decode_worker, self._request(Role.BOTH))]
        self.state = FlowState.PREFILLING
        self._prefill = stream
        return [Open(stream, event.prefill_worker, self._request(Role.PREFILL))]

    def _on_offered(self, offered: Offered) -> list[FlowInstruction]:
        self._cached_tokens = offered.cached_tokens
        if self.state is not FlowState.PREFILLING or self._only_one_token_left():
            return []
        assert self._decode_worker is not None
        self.state = FlowState.HANDING_OVER
        self._decode = self._new_stream()
        return [Open(self._decode, self._decode_worker, self._request(Role.DECODE, offered.handoff))]

    def _only_one_token_left(self) -> bool:
        """The prefill worker ends the sequence by itself."""
        return len(self._attempt_output) + 1 >= self._sampling.max_tokens

    def _new_stream(self) -> int:
        self._next_stream += 1
        return self._next_stream

    def _request(self, role: Role, handoff: Handoff | None = None) -> GenerateRequest:
        sampling = self._sampling
        if self._prompt_delivered and sampling.prompt_logprobs is not None:
            sampling = msgspec.structs.replace(sampling, prompt_logprobs=None)
        return GenerateRequest(
            request_id=self._attempts.id_of(self._request_id),
            prompt=list(self._prompt),
            sampling=sampling,
            output=self._attempt_output,
            role=role,
            handoff=handoff,
            priority=self._priority,
            cache_salt=self._cache_salt,
        )

    # Items -------------------------------------------------------------------------------------------

    def _on_item(self, stream: int, item: Item) -> list[FlowInstruction]:
        if type(item) is Tokens or type(item) is Finished:
            if stream == self._decode and not self._decode_spoke and self._prefill is not None:
                return [*self._handed_over(), *self._on_output(stream, item)]
            return self._on_output(stream, item)
        if isinstance(item, Offered):
            return self._on_offered(item) if stream == self._prefill else []
        if isinstance(item, Failed):
            return self._on_failed(stream, item)
        if isinstance(item, PromptScored) and not self._prompt_delivered:
            self._prompt_delivered = True
            return [DeliverPrompt(item.logprobs)]
        return []

    def _handed_over(self) -> list[FlowInstruction]:
        """The decode worker speaks for the first time, while the prefill worker is still looked at."""
        self._decode_spoke = True
        if self.state is not FlowState.TRANSFERRING:
            return [HandedOver()]
        watch, self._prefill = self._prefill, None
        self.state = FlowState.DECODING
        return [HandedOver(watch)]

    def _on_output(self, stream: int, item: Tokens | Finished) -> list[FlowInstruction]:
        seen = len(self._delivered)
        if item.index > seen:
            if stream == self._decode and self._prefill is not None:
                self._held.append(item)  # the decode worker was quicker than the first token's own way
                return []
            return self._on_gap(stream)
        instructions: list[FlowInstruction] = []
        skip = seen - item.index
        if len(item.tokens) > skip:
            tokens = item.tokens[skip:] if skip else item.tokens
            logprobs = item.logprobs
            if logprobs is not None and skip:
                logprobs = logprobs[skip:]
            self._delivered.extend(tokens)
            instructions.append(Deliver(tokens, logprobs, _hidden(item)))
        if type(item) is Finished:
            instructions += self._on_finished(stream, item)
        elif stream == self._prefill and self._held:
            instructions += self._release_held()
        return instructions

    def _on_finished(self, stream: int, item: Finished) -> list[FlowInstruction]:
        reason = item.reason
        if reason is FinishReason.STOP or reason is FinishReason.LENGTH:
            if stream == self._prefill or self._cached_tokens is None:
                self._cached_tokens = item.cached_tokens
            self._forget(stream)
            return [*self._end(), self._completion(reason)]
        if reason is FinishReason.HANDOFF and stream == self._prefill:
            self._cached_tokens = item.cached_tokens
            if self._decode is not None:
                return self._on_prefilled()
            return self._on_broken(stream, "prefill ended without offering its cache")
        return self._on_broken(stream, f"the worker ended the request ({reason.value})")

    def _on_prefilled(self) -> list[FlowInstruction]:
        if self._decode_spoke:
            return self._decode_alone()
        assert self._prefill_worker is not None
        self.state = FlowState.TRANSFERRING
        self._prefill = self._new_stream()
        return [Watch(self._prefill, self._prefill_worker)]

    def _decode_alone(self) -> list[FlowInstruction]:
        self._prefill = None
        self.state = FlowState.DECODING
        return self._release_held()

    def _release_held(self) -> list[FlowInstruction]:
        held, self._held = self._held, []
        instructions: list[FlowInstruction] = []
        for item in held:
            if self._decode is None:
                break
            instructions += self._on_output(self._decode, item)
        return instructions

    # Ends and losses -----------------------------------------------------------------------------------

    def _on_failed(self, stream: int, failed: Failed) -> list[FlowInstruction]:
        error = error_of(failed)
        if failed.retryable:
            return self._on_lost(stream, error)
        self._forget(stream)
        return self._abort(error)

    def _on_lost(self, stream: int, error: TokenmillError) -> list[FlowInstruction]:
        if stream not in (self._prefill, self._decode):
            return []
        lost_prefill = stream == self._prefill
        self._forget(stream)
        if not lost_prefill:
            return self._replay(self._decode_worker, error, reason_of(error))
        if self._decode is None or self._waits_in_vain(error):
            return self._replay(self._prefill_worker, error, reason_of(error))
        return self._decode_alone()

    def _waits_in_vain(self, error: TokenmillError) -> bool:
        """Whether the decode worker cannot go on without the prefill worker that was lost.

        The first token comes from the prefill worker alone. The rest of the cache is missed at once where the
        sender is dead, and computed anew; a sender that only says nothing is waited for.
        """
        return self._no_token_yet() or (isinstance(error, WorkerStalled) and not self._decode_spoke)

    def _no_token_yet(self) -> bool:
        return len(self._delivered) == len(self._attempt_output)

    def _on_gap(self, stream: int) -> list[FlowInstruction]:
        # Where nothing has come yet, what is missing is the prefill worker's token.
        of_prefill = stream == self._prefill or (self._prefill_worker is not None and self._no_token_yet())
        worker = self._prefill_worker if of_prefill else self._decode_worker
        return self._replay(worker, WorkerLost("a worker skipped tokens"), MigrationReason.FAILED)

    def _on_broken(self, stream: int, why: str) -> list[FlowInstruction]:
        worker = self._prefill_worker if stream == self._prefill else self._decode_worker
        self._forget(stream)
        return self._replay(worker, WorkerLost(why), MigrationReason.FAILED)

    def _replay(
        self, worker: WorkerId | None, error: TokenmillError, reason: MigrationReason
    ) -> list[FlowInstruction]:
        """Leave ``worker`` and go on elsewhere with what was delivered, if that may be."""
        assert worker is not None
        if len(self._delivered) >= self._sampling.max_tokens:
            return [*self._end(), self._completion(FinishReason.LENGTH)]
        moved = Migration(
            reason=reason,
            phase=Phase.PREFILL if self._no_token_yet() else Phase.DECODE,
            worker=worker,
            replayed_tokens=len(self._prompt) + len(self._delivered),
            message=error.message,
        )
        pair = frozenset(name for name in (self._prefill_worker, self._decode_worker) if name is not None)
        refusal = self._attempts.leave(moved, error, pair)
        if refusal is not None:
            return self._abort(refusal.error, refusal.why)
        instructions = self._end()
        self.state = FlowState.ROUTING
        # Who is full will be full for a while; who is leaving or lost is being replaced; a pair tries again.
        may_wait = reason not in (MigrationReason.REFUSED, MigrationReason.HANDOFF)
        return [*instructions, Route(self._attempts.excluded, may_wait, moved)]

    def _on_no_worker(self, event: NoWorkerFound) -> list[FlowInstruction]:
        refusal = self._attempts.nobody(event.message)
        if refusal is None:
            return [Route(self._attempts.excluded, may_wait=True)]
        return self._abort(refusal.error, refusal.why)

    def _forget(self, stream: int) -> None:
        if stream == self._prefill:
            self._prefill = None
        elif stream == self._decode:
            self._decode = None

    def _completion(self, reason: FinishReason) -> Complete:
        return Complete(reason, len(self._delivered), self._cached_tokens or 0)

    def _abort(self, error: TokenmillError, not_moved: NotMoved | None = None) -> list[FlowInstruction]:
        return [*self._end(), Abort(error, not_moved)]

    def _end(self) -> list[FlowInstruction]:
        cancels: list[FlowInstruction] = [
            Cancel(stream) for stream in (self._prefill, self._decode) if stream is not None
        ]
        self._prefill = self._decode = None
        self._held = []
        self.state = FlowState.ENDED
        return cancels


def _hidden(item: Tokens | Finished) -> int:
    if type(item) is Finished and item.stop_token is not None and item.tokens[-1:] == [item.stop_token]:
        return 1
    return 0
