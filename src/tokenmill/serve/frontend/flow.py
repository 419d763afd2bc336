r"""The life of one sequence, without I/O: facts in, instructions out.

Exists so that exactly-once delivery, the hand-over from prefill to decode and replay after a loss can be
tested for every order of events. It must not know sockets, text, HTTP, clocks or how workers are chosen.

    ROUTING --Routed--> AGGREGATED ------------------------------> ENDED
       ^        \------> PREFILLING --Offered--> HANDING_OVER
       |                     |                       | prefill ends or is lost
       +---- worker lost ----+------ DECODING <------+
"""

from __future__ import annotations

from enum import Enum, auto

from tokenmill.errors import NoWorker, Overloaded, TokenmillError, WorkerLost
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
    NoWorkerFound,
    Open,
    Received,
    Route,
    Routed,
    StopHit,
    StreamLost,
    error_of,
)


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
    DECODING = auto()
    """The decode worker has it."""
    ENDED = auto()
    """Nothing is open, nothing more will be said."""


class Flow:
    """One sequence. Mutated only through ``handle``.

    ``max_attempts``: how many times, the first included, a worker may be tried. Tokens that come from the
    decode worker before the prefill worker's first one are held back; the bound is ``sampling.max_tokens``.
    """

    def __init__(
        self,
        request_id: RequestId,
        prompt: list[int],
        sampling: Sampling,
        *,
        max_attempts: int = 3,
        priority: int = 0,
        cache_salt: str = "",
    ) -> None:
        self.state = FlowState.ROUTING
        self._request_id = request_id
        self._prompt = prompt
        self._sampling = sampling
        self._max_attempts = max_attempts
        self._priority = priority
        self._cache_salt = cache_salt
        self._delivered: list[int] = []
        self._cached_tokens: int | None = None
        self._prompt_delivered = False
        self._attempt = 0
        self._excluded: frozenset[WorkerId] = frozenset()
        self._last_error: TokenmillError | None = None
        self._next_stream = 0
        self._prefill: int | None = None
        self._decode: int | None = None  # the aggregated stream too
        self._prefill_worker: WorkerId | None = None
        self._decode_worker: WorkerId | None = None
        self._attempt_output: list[int] = []
        self._prefill_lost = False
        self._held: list[Tokens | Finished] = []

    @property
    def delivered_tokens(self) -> int:
        """How many tokens were delivered."""
        return len(self._delivered)

    def begin(self) -> list[FlowInstruction]:
        """Return the first instruction."""
        return [Route(self._excluded, may_wait=True)]

    def handle(self, event: FlowEvent) -> list[FlowInstruction]:
        """Take one fact; return what is to be done, in order. Facts about streams not open are ignored."""
        if self.state is FlowState.ENDED:
            return []
        if type(event) is Received:
            return self._on_item(event.stream, event.item)
        if isinstance(event, StreamLost):
            if event.stream == self._decode and self._held and type(self._held[-1]) is Finished:
                return []  # it ended well; we have not come to its end yet
            return self._on_lost(event.stream, event.error, dead=isinstance(event.error, WorkerLost))
        if isinstance(event, StopHit):
            return [*self._end(), self._completion(FinishReason.STOP)]
        if isinstance(event, ClientGone):
            return self._end()
        if isinstance(event, DeadlinePassed):
            return self._abort(event.error)
        if self.state is not FlowState.ROUTING:
            return []
        if isinstance(event, Routed):
            return self._on_routed(event)
        assert isinstance(event, NoWorkerFound)
        return self._abort(self._last_error or NoWorker(event.message))

    def validate(self) -> None:
        """Check what must always hold; for tests."""
        streams = {
            FlowState.ROUTING: (False, False),
            FlowState.AGGREGATED: (False, True),
            FlowState.PREFILLING: (True, False),
            FlowState.HANDING_OVER: (True, True),
            FlowState.DECODING: (False, True),
            FlowState.ENDED: (False, False),
        }
        assert (self._prefill is not None, self._decode is not None) == streams[self.state]
        assert not self._held or self.state is FlowState.HANDING_OVER
        assert len(self._delivered) <= self._sampling.max_tokens

    # Opening -----------------------------------------------------------------------------------------

    def _on_routed(self, event: Routed) -> list[FlowInstruction]:
        self._attempt_output = self._delivered.copy()
        self._prefill_lost = False
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
        # A worker may still be cleaning up after an earlier attempt, so that each has an id of its own.
        suffix = f".{self._attempt}" if self._attempt else ""
        return GenerateRequest(
            request_id=RequestId(self._request_id + suffix),
            prompt=self._prompt,
            sampling=self._sampling,
            output=self._attempt_output,
            role=role,
            handoff=handoff,
            priority=self._priority,
            cache_salt=self._cache_salt,
        )

    # Items -------------------------------------------------------------------------------------------

    def _on_item(self, stream: int, item: Item) -> list[FlowInstruction]:
        if stream not in (self._decode, self._prefill):
            return []
        if type(item) is Tokens or type(item) is Finished:
            return self._on_output(stream, item)
        if isinstance(item, Offered):
            return self._on_offered(item) if stream == self._prefill else []
        if isinstance(item, Failed):
            return self._on_failed(stream, item)
        if isinstance(item, PromptScored) and not self._prompt_delivered:
            self._prompt_delivered = True
            return [DeliverPrompt(item.logprobs)]
        return []

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
                self._prefill = None
                self.state = FlowState.DECODING
                return self._release_held()
            return self._on_lost(stream, WorkerLost("prefill ended without offering its cache"), dead=True)
        return self._on_lost(stream, WorkerLost(f"the worker ended the request ({reason.value})"), dead=True)

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
            # Who is full will be full for a while; who is leaving is being replaced.
            return self._on_lost(stream, error, dead=not isinstance(error, Overloaded))
        self._forget(stream)
        return self._abort(error)

    def _on_lost(self, stream: int, error: TokenmillError, *, dead: bool) -> list[FlowInstruction]:
        if stream not in (self._prefill, self._decode):
            return []
        lost_prefill = stream == self._prefill
        self._forget(stream)
        if lost_prefill and self._decode is not None:
            # The decode worker computes what it cannot fetch. If it could fetch, the first token is lost,
            # which shows as a gap.
            self._prefill_lost = True
            self.state = FlowState.DECODING
            return self._release_held()
        worker = self._prefill_worker if lost_prefill else self._decode_worker
        return self._replay(worker, error, may_wait=dead)

    def _on_gap(self, stream: int) -> list[FlowInstruction]:
        worker = (
            self._prefill_worker if stream == self._prefill or self._prefill_lost else self._decode_worker
        )
        return self._replay(worker, WorkerLost("a worker skipped tokens"), may_wait=True)

    def _replay(
        self, worker: WorkerId | None, error: TokenmillError, *, may_wait: bool
    ) -> list[FlowInstruction]:
        self._last_error = error
        self._attempt += 1
        if len(self._delivered) >= self._sampling.max_tokens:
            return [*self._end(), self._completion(FinishReason.LENGTH)]
        if self._attempt >= self._max_attempts:
            return self._abort(error)
        if worker is not None:
            self._excluded |= {worker}
        instructions = self._end()
        self.state = FlowState.ROUTING
        return [*instructions, Route(self._excluded, may_wait)]

    def _forget(self, stream: int) -> None:
        if stream == self._prefill:
            self._prefill = None
        elif stream == self._decode:
            self._decode = None

    def _completion(self, reason: FinishReason) -> Complete:
        return Complete(reason, len(self._delivered), self._cached_tokens or 0)

    def _abort(self, error: TokenmillError) -> list[FlowInstruction]:
        return [*self._end(), Abort(error)]

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
