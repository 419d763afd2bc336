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

from tokenmill.decide.router.types import RouteRequest
from tokenmill.errors import TokenmillError, WorkerFailed
from tokenmill.protocol.block_hashes import pack_tokens
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import FinishReason, HandoffLost, Item, TokenLogprobs, Tokens
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
    HandedOver,
    Open,
    Received,
    Route,
    StopHit,
    StreamLost,
    Watch,
)
from tokenmill.serve.frontend.migration import MigrationLimits
from tokenmill.serve.frontend.plant import OpenedStream, Plant
from tokenmill.serve.frontend.standing import Standing
from tokenmill.serve.frontend.timeline import SequenceTimeline
from tokenmill.serve.frontend.worker_choice import WorkerChoice
from tokenmill.serve.text.detokenizer import Detokenizer
from tokenmill.serve.text.stop import StopStrings


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """One sequence that a client wants. ``prompt``: best as ``block_hashes.token_array``, since it is kept
    for as long as the sequence runs. ``keep_output`` False: only the prompt is of interest."""

    request_id: RequestId
    prompt: Sequence[int]
    sampling: Sampling
    standing: Standing
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    cache_salt: str = ""
    keep_output: bool = True
    group: str = ""
    """Shared by the sequences of one request where there are several; ``choice`` numbers them."""
    choice: int = 0


class SequenceListener(Protocol):
    """Who takes what a sequence makes. ``index`` is the choice. Exactly one end, unless cancelled."""

    def prompt_scored(self, index: int, logprobs: list[TokenLogprobs | None]) -> None:
        """Log probabilities of the prompt's tokens, before any output."""
        ...

    def output_made(
        self,
        index: int,
        texts: Sequence[str],
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
    ) -> None:
        """New tokens, and for each the text that is certain with it (may be empty). At the end a text may
        come without a token."""
        ...

    def sequence_finished(self, index: int, reason: str, output_tokens: int, cached_tokens: int) -> None:
        """A good end. ``reason``: "stop" or "length"."""
        ...

    def sequence_failed(self, index: int, error: TokenmillError, /) -> None:
        """A bad end."""
        ...


class SequenceTimes(Protocol):
    """Who notes when things happen to a sequence."""

    @property
    def timeline(self) -> SequenceTimeline:
        """Where changes of state are noted."""
        ...

    def tokens_came(self) -> None:
        """A sequence got tokens now."""
        ...

    def attempt_began(self) -> None:
        """The next tokens are the first ones of new workers."""
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
        times: SequenceTimes,
        limits: MigrationLimits,
    ) -> None:
        self._index = index
        self._spec = spec
        self._plant = plant
        self._detokenizer = detokenizer
        self._stops = StopStrings(spec.stops, include_in_output=spec.include_stop) if spec.stops else None
        self._listener = listener
        self._times = times
        self._timeline = times.timeline
        self._flow = Flow(
            spec.request_id,
            spec.prompt,
            spec.sampling,
            limits=limits,
            priority=spec.standing.priority,
            cache_salt=spec.cache_salt,
        )
        self._streams: dict[int, OpenedStream] = {}
        self._choice = WorkerChoice(plant, self._timeline)
        self._began = False
        self._paused = False
        self._output_tokens = 0
        self._busy = False
        self._plain = False  # tokens go straight to the listener
        # What happens while an event is being handled; a handful, since each comes from an instruction.
        self._pending: deque[FlowEvent] = deque()

    def start(self) -> None:
        """Begin: choose workers and open streams, now if there are workers."""
        for instruction in self._flow.begin():
            self._carry_out(instruction)

    def cancel(self) -> None:
        """Nobody wants it any more. The listener hears no end."""
        self._handle(ClientGone())
        self._choice.stop()
        self._timeline.cancelled(self._output_tokens)
        self._over()

    def expire(self, error: TokenmillError) -> None:
        """It took too long: end with ``error``."""
        self._handle(DeadlinePassed(error))
        self._choice.stop()

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
        if type(item) is Tokens and self._plain and self._flow.goes_on(stream, item):
            # The way of nearly every token: no event, no instruction, nothing that could need the queue.
            tokens = item.tokens
            self._times.tokens_came()
            self._output_tokens += len(tokens)
            self._listener.output_made(
                self._index, self._detokenizer.push_each(tokens), tokens, item.logprobs
            )
            return
        if type(item) is HandoffLost:
            self._timeline.handoff_lost(item)
            return
        if self._busy:
            self._pending.append(Received(stream, item))
            return
        self._busy = True
        try:
            for instruction in self._flow.received(stream, item):
                self._carry_out(instruction)
            while self._pending:
                for instruction in self._flow.handle(self._pending.popleft()):
                    self._carry_out(instruction)
        finally:
            self._busy = False

    def _on_end(self, stream: int, error: TokenmillError | None) -> None:
        self._streams.pop(stream, None)
        self._handle(StreamLost(stream, error or WorkerFailed("the worker ended the stream too early")))

    def _over(self) -> None:
        self._plant.over(self._spec.request_id, len(self._flow.delivered))

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
        elif isinstance(instruction, Watch):
            self._watch(instruction.stream, instruction.worker)
        elif isinstance(instruction, HandedOver):
            self._handed_over(instruction.watch)
        elif isinstance(instruction, Abort):
            self._timeline.failed(instruction.error, instruction.not_moved, self._output_tokens)
            self._over()
            self._listener.sequence_failed(self._index, instruction.error)
        elif isinstance(instruction, DeliverPrompt):
            self._listener.prompt_scored(self._index, instruction.logprobs)

    def _route(self, route: Route) -> None:
        spec, delivered = self._spec, self._flow.delivered
        wanted = RouteRequest(
            request_id=spec.request_id,
            packed=pack_tokens(spec.prompt) + pack_tokens(delivered),
            output_tokens=spec.sampling.max_tokens - len(delivered),
            cache_salt=spec.cache_salt,
            session=spec.standing.session,
            tenant=spec.standing.tenant,
            priority=spec.standing.priority,
            deadline_at=spec.standing.deadline_at,
            group=spec.group,
            choice=spec.choice,
            replay=route.replay,
        )
        self._choice.ask(wanted, route, self._handle, delivered_tokens=len(delivered))

    def _open(self, stream: int, worker: WorkerId, request: GenerateRequest) -> None:
        opened = self._plant.open(
            worker,
            request,
            partial(self._on_item, stream),
            partial(self._on_end, stream),
            cached_tokens=self._choice.cached_tokens,
        )
        self._timeline.opened(request.role)
        if request.role is not Role.DECODE:
            self._times.attempt_began()
            self._began = self._plain = False
        self._streams[stream] = opened
        if self._paused:
            opened.pause()

    def _watch(self, stream: int, worker: WorkerId) -> None:
        self._streams[stream] = self._plant.watch(worker, partial(self._on_end, stream))

    def _handed_over(self, watch: int | None) -> None:
        self._timeline.handed_over()
        watched = self._streams.pop(watch, None) if watch is not None else None
        if watched is not None:
            watched.cancel()

    def _deliver(self, new: Deliver) -> None:
        self._times.tokens_came()
        if not self._began:
            self._began = True
            self._plant.began(self._spec.request_id)
            self._plain = self._stops is None and self._spec.keep_output
        if not self._spec.keep_output:
            return
        tokens, logprobs = new.tokens, new.logprobs
        self._output_tokens += len(tokens)
        if new.hidden:
            tokens = tokens[: -new.hidden]
            logprobs = logprobs and logprobs[: -new.hidden]
        if self._stops is None:
            self._listener.output_made(self._index, self._detokenizer.push_each(tokens), tokens, logprobs)
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
        self._listener.output_made(self._index, texts, tokens[:shown], logprobs and logprobs[:shown])

    def _complete(self, end: Complete) -> None:
        rest = self._last_text() if self._spec.keep_output and not self._stopped() else ""
        if rest:
            self._listener.output_made(self._index, (rest,), (), None)
        reason = "length" if end.reason is FinishReason.LENGTH and not self._stopped() else "stop"
        self._timeline.finished(reason, self._output_tokens, end.cached_tokens)
        self._over()
        self._listener.sequence_finished(self._index, reason, self._output_tokens, end.cached_tokens)

    def _last_text(self) -> str:
        rest = self._detokenizer.finish()
        if self._stops is None:
            return rest
        rest = self._stops.push(rest)
        return rest + self._stops.finish()

    def _stopped(self) -> bool:
        return self._stops is not None and self._stops.hit is not None
