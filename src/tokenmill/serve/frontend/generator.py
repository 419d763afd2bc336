"""One request as it is served: its sequences, its deadline, its counts.

Exists so that both APIs start, expire, cancel and count in one way. It must not know HTTP or OpenAI's JSON.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol

from tokenmill.clock import Clock
from tokenmill.errors import DeadlineExceeded, TokenmillError
from tokenmill.serve.frontend.answers import (
    ChunkFormat,
    Collected,
    CollectedAnswer,
    StreamedAnswer,
    Tally,
)
from tokenmill.serve.frontend.flow_metrics import FlowMetrics
from tokenmill.serve.frontend.generation import RunningSequence, SequenceListener, SequenceSpec
from tokenmill.serve.frontend.metrics import ModelMetrics
from tokenmill.serve.frontend.migration import MigrationLimits
from tokenmill.serve.frontend.plant import Plant
from tokenmill.serve.frontend.stream_room import StreamRoom
from tokenmill.serve.frontend.timeline import RequestTimeline, SequenceTimeline
from tokenmill.serve.frontend.write_batch import WriteBatch
from tokenmill.serve.text.detokenizer import Detokenizer
from tokenmill.serve.text.tokenizer import Tokenizer

_QUEUE_FIRST_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What answers of one model are made with, whatever its workers take; as long as there is ``room``."""

    plant: Plant
    metrics: ModelMetrics
    flow_metrics: FlowMetrics
    clock: Clock
    room: StreamRoom
    batch: WriteBatch
    request_timeout_s: float
    migration: MigrationLimits

    def running(self, endpoint: str, tally: Tally, timeline: RequestTimeline) -> RunningRequest:
        """Return a request that is to begin."""
        return RunningRequest(self.metrics, self.clock, endpoint, tally, timeline)

    def timeout_s(self, deadline_at: float | None) -> float:
        """How long a request may take, in seconds; while it is in the queue, that is to say what it waited
        for."""
        if deadline_at is None:
            return self.request_timeout_s
        return min(self.request_timeout_s, max(0.0, deadline_at - self.clock.now()) + _QUEUE_FIRST_S)


class Generator:
    """Makes answers of sequences of one model."""

    def __init__(self, means: Means, tokenizer: Tokenizer) -> None:
        self._means = means
        self._tokenizer = tokenizer

    async def stream(
        self,
        endpoint: str,
        specs: list[SequenceSpec],
        chunks: ChunkFormat,
        tally: Tally,
        *,
        timeline: RequestTimeline,
        skip_special_tokens: bool,
        shown: frozenset[int] = frozenset(),
    ) -> StreamedAnswer:
        """Return the stream once its first bytes are there. ``shown``: special tokens that are not skipped.
        Raises what goes wrong before that.

        Cancelled: the sequences are cancelled at their workers.
        """
        running = self._means.running(endpoint, tally, timeline)
        answer = StreamedAnswer(chunks, len(specs), tally, running, self._means.batch)
        self._start(running, specs, answer, skip_special_tokens=skip_special_tokens, shown=shown)
        await answer.started()
        return answer

    async def collect(
        self,
        endpoint: str,
        specs: list[SequenceSpec],
        tally: Tally,
        *,
        timeline: RequestTimeline,
        skip_special_tokens: bool,
        shown: frozenset[int] = frozenset(),
    ) -> list[Collected]:
        """Return all choices; ``shown`` as above. Raises what goes wrong. Cancelled: so are the sequences, at
        their workers."""
        running = self._means.running(endpoint, tally, timeline)
        answer = CollectedAnswer(len(specs), tally, running.ended)
        self._start(running, specs, answer, skip_special_tokens=skip_special_tokens, shown=shown)
        return await answer.result()

    def _start(
        self,
        running: RunningRequest,
        specs: list[SequenceSpec],
        listener: SequenceListener,
        *,
        skip_special_tokens: bool,
        shown: frozenset[int],
    ) -> None:
        means = self._means
        means.room.check()
        running.begin(
            [
                RunningSequence(
                    index,
                    spec,
                    means.plant,
                    Detokenizer(
                        self._tokenizer,
                        skip_special_tokens=skip_special_tokens,
                        shown=shown,
                        prefix=spec.prompt,
                    ),
                    listener,
                    running.times(len(spec.prompt), means.flow_metrics),
                    means.migration,
                )
                for index, spec in enumerate(specs)
            ],
            means.timeout_s(specs[0].standing.deadline_at),
        )


class Sequence(Protocol):
    """What a request is made of."""

    def start(self) -> None:
        """Begin."""
        ...

    def cancel(self) -> None:
        """Nobody wants it any more."""
        ...

    def expire(self, error: TokenmillError) -> None:
        """It took too long: end with ``error``."""
        ...

    def pause(self) -> None:
        """Ask for no more until ``resume``."""
        ...

    def resume(self) -> None:
        """Take more again."""
        ...


class RunningRequest:
    """``answers.Controls`` of one request, and its clock."""

    def __init__(
        self,
        metrics: ModelMetrics,
        clock: Clock,
        endpoint: str,
        tally: Tally,
        timeline: RequestTimeline,
    ) -> None:
        self.metrics = metrics
        self.now = clock.now
        self._endpoint = endpoint
        self._tally = tally
        self._timeline = timeline
        self._sequences: list[Sequence] = []
        self._began_at = clock.now()
        self._first_token = True
        self._over = False
        self._timer: asyncio.TimerHandle | None = None

    def times(self, prompt_tokens: int, stages: FlowMetrics) -> SequenceTimes:
        """Return who notes the times of a further sequence."""
        timeline = SequenceTimeline(prompt_tokens, self.now, stages)
        self._timeline.sequences.append(timeline)
        return SequenceTimes(self, timeline)

    def begin(self, sequences: list[Sequence], timeout_s: float) -> None:
        """Start all sequences; they expire after ``timeout_s``."""
        self.metrics.in_flight += 1
        self._sequences = sequences
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, timeout_s)
        for sequence in sequences:
            if not self._over:
                sequence.start()

    def ended(self, status: str) -> None:
        """The answer is over; sequences still running are cancelled."""
        if self._over:
            return
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        sequences, self._sequences = self._sequences, []
        for sequence in sequences:
            sequence.cancel()
        self._count(status)

    def pause(self) -> None:
        """The reader is behind."""
        for sequence in self._sequences:
            sequence.pause()

    def resume(self) -> None:
        """The reader has caught up."""
        for sequence in self._sequences:
            sequence.resume()

    def first_token(self, now: float) -> None:
        """A sequence got its first token; the request's first one counts."""
        if self._first_token:
            self._first_token = False
            self.metrics.ttft.observe(now - self._began_at)

    def _expire(self, timeout_s: float) -> None:
        error = DeadlineExceeded(f"the request took longer than {timeout_s:g} s")
        for sequence in self._sequences:
            sequence.expire(error)

    def _count(self, status: str) -> None:
        metrics, tally = self.metrics, self._tally
        metrics.in_flight -= 1
        metrics.generations[self._endpoint, status] += 1
        metrics.prompt_tokens += tally.prompt_tokens
        metrics.cached_tokens += tally.cached_tokens
        metrics.output_tokens += tally.output_tokens
        now = self.now()
        metrics.e2e.observe(now - self._began_at)
        self._timeline.ended(now, status)


class SequenceTimes:
    """Notes when things happen to one sequence."""

    __slots__ = ("_first", "_itl", "_last_at", "_now", "_request", "timeline")

    def __init__(self, request: RunningRequest, timeline: SequenceTimeline) -> None:
        self.timeline = timeline
        self._request = request
        self._now = request.now
        self._itl = request.metrics.itl.observe
        self._last_at: float | None = None
        self._first = True

    def attempt_began(self) -> None:
        """The next tokens are the first ones of new workers."""
        self._first = True

    def tokens_came(self) -> None:
        """Tokens came now."""
        now = self._now()
        last_at, self._last_at = self._last_at, now
        if self._first or last_at is None:
            self._first_came(now, last_at)
        else:
            self._itl(now - last_at)

    def _first_came(self, now: float, last_at: float | None) -> None:
        """The first tokens of new workers, and perhaps of the sequence."""
        self._first = False
        self.timeline.first_token(now)
        if last_at is None:
            self._request.first_token(now)
        else:
            self._itl(now - last_at)
