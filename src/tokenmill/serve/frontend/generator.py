"""One request as it is served: its sequences, its deadline, its counts.

Exists so that both APIs start, expire, cancel and count in one way. It must not know HTTP or OpenAI's JSON.
"""

from __future__ import annotations

import asyncio

from tokenmill.clock import Clock
from tokenmill.errors import DeadlineExceeded
from tokenmill.serve.frontend.answers import (
    ChunkFormat,
    Collected,
    CollectedAnswer,
    StreamedAnswer,
    Tally,
)
from tokenmill.serve.frontend.generation import RunningSequence, SequenceListener, SequenceSpec
from tokenmill.serve.frontend.metrics import FrontendMetrics
from tokenmill.serve.frontend.plant import Plant
from tokenmill.serve.text.detokenizer import Detokenizer
from tokenmill.serve.text.tokenizer import Tokenizer


class Generator:
    """Makes answers of sequences."""

    def __init__(
        self,
        plant: Plant,
        tokenizer: Tokenizer,
        metrics: FrontendMetrics,
        clock: Clock,
        *,
        request_timeout_s: float,
    ) -> None:
        self._plant = plant
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._clock = clock
        self._request_timeout_s = request_timeout_s

    async def stream(
        self,
        endpoint: str,
        specs: list[SequenceSpec],
        chunks: ChunkFormat,
        tally: Tally,
        *,
        skip_special_tokens: bool,
    ) -> StreamedAnswer:
        """Return the stream once its first bytes are there. Raises what goes wrong before that.

        Cancelled: the sequences are cancelled at their workers.
        """
        running = RunningRequest(self._metrics, self._clock, endpoint, tally)
        answer = StreamedAnswer(chunks, len(specs), tally, running)
        self._start(running, specs, answer, skip_special_tokens=skip_special_tokens)
        try:
            await answer.started()
        except asyncio.CancelledError:
            answer.gone()
            raise
        return answer

    async def collect(
        self, endpoint: str, specs: list[SequenceSpec], tally: Tally, *, skip_special_tokens: bool
    ) -> list[Collected]:
        """Return all choices. Raises what goes wrong. Cancelled: so are the sequences, at their workers."""
        running = RunningRequest(self._metrics, self._clock, endpoint, tally)
        answer = CollectedAnswer(len(specs), tally, running.ended)
        self._start(running, specs, answer, skip_special_tokens=skip_special_tokens)
        return await answer.result()

    def _start(
        self,
        running: RunningRequest,
        specs: list[SequenceSpec],
        listener: SequenceListener,
        *,
        skip_special_tokens: bool,
    ) -> None:
        running.begin(
            [
                RunningSequence(
                    index,
                    spec,
                    self._plant,
                    Detokenizer(self._tokenizer, skip_special_tokens=skip_special_tokens, prefix=spec.prompt),
                    listener,
                    SequenceTimes(running),
                )
                for index, spec in enumerate(specs)
            ],
            self._request_timeout_s,
        )


class RunningRequest:
    """``answers.Controls`` of one request, and its clock."""

    def __init__(self, metrics: FrontendMetrics, clock: Clock, endpoint: str, tally: Tally) -> None:
        self.metrics = metrics
        self.now = clock.now
        self._endpoint = endpoint
        self._tally = tally
        self._sequences: list[RunningSequence] = []
        self._began_at = clock.now()
        self._first_token = True
        self._over = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, sequences: list[RunningSequence], timeout_s: float) -> None:
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
        metrics.e2e.observe(self.now() - self._began_at)


class SequenceTimes:
    """Notes when one sequence's tokens came."""

    __slots__ = ("_last_at", "_request")

    def __init__(self, request: RunningRequest) -> None:
        self._request = request
        self._last_at: float | None = None

    def tokens_came(self) -> None:
        """Tokens came now."""
        request = self._request
        now = request.now()
        if self._last_at is None:
            request.first_token(now)
        else:
            request.metrics.itl.observe(now - self._last_at)
        self._last_at = now
