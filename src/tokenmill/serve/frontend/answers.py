"""From running sequences to answers: one that streams, one that collects.

Exists to join sequences with HTTP's streams through a chunk format. It must not know routes or workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.frontend.event_stream import Controls, EventStream
from tokenmill.serve.frontend.openai.chunks import DONE
from tokenmill.serve.frontend.openai.usage import Usage
from tokenmill.serve.frontend.whole_answer import WholeAnswer
from tokenmill.serve.frontend.write_batch import WriteBatch

PromptScores = list[TokenLogprobs | None]


class ChunkFormat(Protocol):
    """How an API writes its chunks; see ``openai.chunks``."""

    include_usage: bool
    plain: bool
    """``texts`` may be asked for chunks."""

    def texts(self, index: int, texts: Sequence[str]) -> bytes:
        """Return a chunk for each text that is not empty."""
        ...

    def opening(self, index: int, prompt_logprobs: Sequence[TokenLogprobs | None] | None = None) -> bytes:
        """Return the first chunk of a choice, or nothing."""
        ...

    def delta(
        self, index: int, text: str, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> bytes:
        """Return the chunk for new tokens, or nothing."""
        ...

    def closing(self, index: int, reason: str) -> bytes:
        """Return the last chunk of a choice."""
        ...

    def usage(self, usage: Usage) -> bytes:
        """Return the chunk after all choices."""
        ...


@dataclass(slots=True)
class Tally:
    """Token counts of a request, filled as its sequences end. ``per_prompt``: choices that share a prompt, so
    that its cached tokens are counted once."""

    prompt_tokens: int
    per_prompt: int = 1
    output_tokens: int = 0
    cached_tokens: int = 0

    def add(self, index: int, output_tokens: int, cached_tokens: int) -> None:
        """A sequence has ended."""
        self.output_tokens += output_tokens
        if index % self.per_prompt == 0:
            self.cached_tokens += cached_tokens

    def usage(self) -> Usage:
        """Return the counts in OpenAI's form."""
        return Usage.of(self.prompt_tokens, self.output_tokens, self.cached_tokens)


class StreamedAnswer(EventStream):
    """Server-sent events of ``choices`` sequences, one a token."""

    def __init__(
        self,
        chunks: ChunkFormat,
        choices: int,
        tally: Tally,
        controls: Controls,
        batch: WriteBatch | None = None,
    ) -> None:
        super().__init__(controls, batch)
        self._chunks = chunks
        self._plain = chunks.plain
        self._tally = tally
        self._left = choices
        self._unopened = set(range(choices))
        self._prompt_scores: dict[int, PromptScores] = {}
        self._solo = choices == 1
        self._texts: list[str] = []
        """Of a sole choice: what waits behind ``_pending``, not yet in chunks."""

    # SequenceListener ----------------------------------------------------------------------------------

    def prompt_scored(self, index: int, logprobs: PromptScores) -> None:
        """Keep the prompt's scores for the opening chunk."""
        self._prompt_scores[index] = logprobs

    def output_made(
        self,
        index: int,
        texts: Sequence[str],
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
    ) -> None:
        """Send a chunk for each token."""
        if self._plain:
            if self._solo and self._epoch == self._batch.epoch:
                # What waits anyway is put into chunks when it leaves, all at once.
                if not self._texts:
                    self._batch.later(self)
                self._texts += texts
                return
            data = self._chunks.texts(index, texts)
        else:
            data = self._detailed(index, texts, tokens, logprobs)
        if self._unopened and index in self._unopened:
            data = self._opening(index) + data
        if data:
            self._write(data)

    def sequence_finished(self, index: int, reason: str, output_tokens: int, cached_tokens: int) -> None:
        """Send the finish reason, and after the last sequence usage and end."""
        self._tally.add(index, output_tokens, cached_tokens)
        data = self._chunks.closing(index, reason)
        if index in self._unopened:
            data = self._opening(index) + data
        self._left -= 1
        if self._left == 0:
            if self._chunks.include_usage:
                data += self._chunks.usage(self._tally.usage())
            self._finish("200", data + DONE)
        else:
            self._write(data)

    def gone(self) -> None:
        """The client left."""
        self._texts.clear()
        super().gone()

    # Inside --------------------------------------------------------------------------------------------

    def _detailed(
        self,
        index: int,
        texts: Sequence[str],
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
    ) -> bytes:
        chunks = self._chunks
        return b"".join(
            chunks.delta(index, text, tokens[at : at + 1], logprobs and logprobs[at : at + 1])
            for at, text in enumerate(texts)
        )

    def _opening(self, index: int) -> bytes:
        self._unopened.remove(index)
        return self._chunks.opening(index, self._prompt_scores.pop(index, None))

    def _taken(self) -> bytes:
        """Return what waits, which is then sent."""
        pending = self._pending
        if self._texts:
            pending.append(self._chunks.texts(0, self._texts))
            self._texts.clear()
        data = pending[0] if len(pending) == 1 else b"".join(pending)
        pending.clear()
        return data


@dataclass(slots=True)
class Collected:
    """One choice, whole."""

    texts: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: PromptScores | None = None
    reason: str = "length"

    @property
    def text(self) -> str:
        """The choice's text."""
        return "".join(self.texts)


class CollectedAnswer(WholeAnswer[list[Collected]]):
    """Collects ``choices`` sequences; ``result`` waits for all of them."""

    def __init__(self, choices: int, tally: Tally, on_end: Callable[[str], None]) -> None:
        super().__init__(on_end)
        self._tally = tally
        self._choices = [Collected() for _ in range(choices)]
        self._left = choices

    def prompt_scored(self, index: int, logprobs: PromptScores) -> None:
        """Keep the prompt's scores."""
        self._choices[index].prompt_logprobs = logprobs

    def output_made(
        self,
        index: int,
        texts: Sequence[str],
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
    ) -> None:
        """Keep new output."""
        choice = self._choices[index]
        choice.texts.extend(texts)
        choice.tokens.extend(tokens)
        if logprobs:
            choice.logprobs.extend(logprobs)

    def sequence_finished(self, index: int, reason: str, output_tokens: int, cached_tokens: int) -> None:
        """Keep the end; the last one completes the answer."""
        self._tally.add(index, output_tokens, cached_tokens)
        self._choices[index].reason = reason
        self._left -= 1
        if self._left == 0:
            self._finish(self._choices)
