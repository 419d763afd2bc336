"""One sequence as it is served: its flow joined with workers' streams, detokenizer and stop strings.

Exists as the shell around ``flow``. It must not know HTTP or OpenAI's JSON: a listener takes text and tokens.
No task and no queue: a worker's frame runs through here to the listener in one call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.errors import TokenmillError, WorkerFailed
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.items import FinishReason, Item, TokenLogprobs
from tokenmill.serve.frontend.flow import Flow
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
)
from tokenmill.serve.frontend.plant import OpenedStream, Plant, Waiter
from tokenmill.serve.text.detokenizer import Detokenizer
from tokenmill.serve.text.stop import StopStrings


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """One sequence that a client wants. ``keep_output`` False: only the prompt is of interest."""

    request_id: RequestId
    prompt: list[int]
    sampling: Sampling
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    priority: int = 0
    cache_salt: str = ""
    max_attempts: int = 3
    keep_output: bool = True


class SequenceListener(Protocol):
    """Who takes what a sequence makes. ``index`` is the choice. Exactly one end, unless cancelled."""

    def prompt_scored(self, index: int, logprobs: list[TokenLogprobs | None]) -> None:
        """Log probabilities of the prompt's tokens, before any output."""
        ...

    def output_made(
        self, index: int, text: str, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> None:
        """New tokens, and the text that is certain by now (either may be empty)."""
        ...

    def sequence_finished(self, index: int, reason: str, output_tokens: int, cached_tokens: int) -> None:
        """A good end. ``reason``: "stop" or "length"."""
        ...

    def sequence_failed(self, index: int, error: TokenmillError, /) -> None:
        """A bad end."""
        ...


class TokenTimes(Protocol):
    """Who notes when tokens came."""

    def tokens_came(self) -> None:
        """A sequence got tokens now."""
        ...


class RunningSequence:
    """Runs one sequence until its end or ``cancel``. All methods belong to the loop's thread."""

    def __init__(
        self,
        index: int,
        spec: SequenceSpec,
        plant: Plant,
        detokenizer: Detokenizer,
        listener: SequenceListener,
        times: TokenTimes,
    ) -> None:
        self._index = index
        self._spec = spec
        self._plant = plant
        self._detokenizer = detokenizer
        self._stops = StopStrings(spec.stops, include_in_output=spec.include_stop) if spec.stops else None
        self._listener = listener
        self._times = times
        self._flow = Flow(
            spec.request_id,
            spec.prompt,
            spec.sampling,
            max_attempts=spec.max_attempts,
            priority=spec.priority,
            cache_salt=spec.cache_salt,
        )
        self._streams: dict[int, OpenedStream] = {}
        self._waiter: Waiter | None = None
        self._paused = False
        self._output_tokens = 0
        self._busy = False
        # What happens while an event is being handled; a handful, since each comes from an instruction.
        self._pending: deque[FlowEvent] = deque()

    def start(self) -> None:
        """Begin: choose workers and open streams, now if there are workers."""
        for instruction in self._flow.begin():
            self._carry_out(instruction)

    def cancel(self) -> None:
        """Nobody wants it any more. The listener hears no end."""
        self._handle(ClientGone())
        self._stop_waiting()

    def expire(self, error: TokenmillError) -> None:
        """It took too long: end with ``error``."""
        self._handle(DeadlinePassed(error))
        self._stop_waiting()

    def pause(self) -> None:
        """Ask the workers for no more until ``resume``."""
        self._paused = True
        for stream in self._streams.values():
            stream.pause()

    def resume(self) -> None:
        """Take more again."""
        self._paused = False
        for stream in tuple(self._streams.values()):
            stream.resume()

    # Events ------------------------------------------------------------------------------------------

    def _handle(self, event: FlowEvent) -> None:
        if self._busy:
            self._pending.append(event)
            return
        self._busy = True
        try:
            for instruction in self._flow.handle(event):
                self._carry_out(instruction)
            while self._pending:
                for instruction in self._flow.handle(self._pending.popleft()):
                    self._carry_out(instruction)
        finally:
            self._busy = False

    def _on_item(self, stream: int, item: Item) -> None:
        self._handle(Received(stream, item))

    def _on_end(self, stream: int, error: TokenmillError | None) -> None:
        self._streams.pop(stream, None)
        self._handle(StreamLost(stream, error or WorkerFailed("the worker ended the stream too early")))

    def _on_decision(self, decision: Decision | None) -> None:
        self._waiter = None
        self._handle(_routed(decision))

    def _stop_waiting(self) -> None:
        if self._waiter is not None:
            self._waiter.cancel()
            self._waiter = None

    # Instructions ------------------------------------------------------------------------------------

    def _carry_out(self, instruction: FlowInstruction) -> None:
        if type(instruction) is Deliver:
            self._deliver(instruction)
        elif isinstance(instruction, Open):
            self._open(instruction.stream, instruction.worker, instruction.request)
        elif isinstance(instruction, Cancel):
            stream = self._streams.pop(instruction.stream, None)
            if stream is not None:
                stream.cancel()
        elif isinstance(instruction, Complete):
            self._complete(instruction)
        elif isinstance(instruction, Route):
            self._route(instruction)
        elif isinstance(instruction, Abort):
            self._listener.sequence_failed(self._index, instruction.error)
        elif isinstance(instruction, DeliverPrompt):
            self._listener.prompt_scored(self._index, instruction.logprobs)

    def _route(self, route: Route) -> None:
        spec = self._spec
        wanted = RouteRequest(
            request_id=spec.request_id,
            prompt=spec.prompt,
            output_tokens=spec.sampling.max_tokens - self._flow.delivered_tokens,
            cache_salt=spec.cache_salt,
        )
        decision = self._plant.decide(wanted, route.excluded)
        if decision is None and route.may_wait:
            self._waiter = self._plant.wait(wanted, route.excluded, self._on_decision)
        else:
            self._handle(_routed(decision))

    def _open(self, stream: int, worker: WorkerId, request: GenerateRequest) -> None:
        opened = self._plant.open(
            worker, request, partial(self._on_item, stream), partial(self._on_end, stream)
        )
        self._streams[stream] = opened
        if self._paused:
            opened.pause()

    def _deliver(self, new: Deliver) -> None:
        self._times.tokens_came()
        if not self._spec.keep_output:
            return
        tokens, logprobs = new.tokens, new.logprobs
        self._output_tokens += len(tokens)
        if new.hidden:
            tokens = tokens[: -new.hidden]
            logprobs = logprobs and logprobs[: -new.hidden]
        if self._stops is None:
            self._listener.output_made(self._index, self._detokenizer.push(tokens), tokens, logprobs)
        else:
            self._deliver_until_stop(tokens, logprobs, self._stops, new.hidden)

    def _deliver_until_stop(
        self,
        tokens: list[int],
        logprobs: list[TokenLogprobs] | None,
        stops: StopStrings,
        hidden: int,
    ) -> None:
        if self._stopped():
            self._output_tokens -= len(tokens) + hidden
            return
        texts: list[str] = []
        shown = 0
        for token in tokens:
            texts.append(stops.push(self._detokenizer.push((token,))))
            shown += 1
            if self._stopped():
                self._output_tokens -= len(tokens) - shown + hidden
                self._handle(StopHit())
                break
        self._listener.output_made(self._index, "".join(texts), tokens[:shown], logprobs and logprobs[:shown])

    def _complete(self, end: Complete) -> None:
        rest = self._last_text() if self._spec.keep_output and not self._stopped() else ""
        if rest:
            self._listener.output_made(self._index, rest, (), None)
        reason = "length" if end.reason is FinishReason.LENGTH and not self._stopped() else "stop"
        self._listener.sequence_finished(self._index, reason, self._output_tokens, end.cached_tokens)

    def _last_text(self) -> str:
        rest = self._detokenizer.finish()
        if self._stops is None:
            return rest
        rest = self._stops.push(rest)
        return rest + self._stops.finish()

    def _stopped(self) -> bool:
        return self._stops is not None and self._stops.hit is not None


def _routed(decision: Decision | None) -> FlowEvent:
    if decision is None:
        return NoWorkerFound()
    return Routed(decision.decode_worker, decision.prefill_worker)
