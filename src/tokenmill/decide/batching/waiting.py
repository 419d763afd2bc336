"""The queue in front of the batch: larger priority first, then arrival.

A preempted sequence comes back to its old place. It must not know blocks or budgets.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from tokenmill.decide.batching.tracked import Tracked


def _rank(sequence: Tracked) -> tuple[int, int]:
    return sequence.rank


class WaitingQueue:
    """Two sorted lines, their first at the end: sequences to compute, and sequences whose KV is pulled.

    Pulled ones need no compute, so they may pass when a step's token budget, and nothing else, is used up.
    The bound is ``BatchingConfig.max_waiting`` for arrivals; preempted ones (at most ``max_sequences``) come
    back above it. Inserting moves at most that many pointers: about a microsecond.
    """

    def __init__(self) -> None:
        self._to_compute: list[Tracked] = []
        self._to_pull: list[Tracked] = []
        self.compute_tokens = 0
        """Tokens of the sequences to compute."""
        self.pull_tokens = 0
        """Tokens of the sequences whose KV is pulled."""

    def __len__(self) -> int:
        return len(self._to_compute) + len(self._to_pull)

    def __iter__(self) -> Iterator[Tracked]:
        yield from self._to_compute
        yield from self._to_pull

    def push(self, sequence: Tracked) -> None:
        """Put a sequence at its place."""
        if sequence.pulls:
            insort(self._to_pull, sequence, key=_rank)
            self.pull_tokens += len(sequence.tokens)
        else:
            insort(self._to_compute, sequence, key=_rank)
            self.compute_tokens += len(sequence.tokens)

    def first(self, only_pulled: bool = False) -> Tracked | None:
        """Return the next sequence, or the next of those that need no compute; None if there is none."""
        pulled = self._to_pull[-1] if self._to_pull else None
        if only_pulled or not self._to_compute:
            return pulled
        computed = self._to_compute[-1]
        return computed if pulled is None or computed.rank > pulled.rank else pulled

    def remove(self, sequence: Tracked) -> None:
        """Take a sequence out, wherever it stands; raises ValueError if it does not wait."""
        line = self._to_pull if sequence.pulls else self._to_compute
        at = bisect_left(line, sequence.rank, key=_rank)
        if at == len(line) or line[at] is not sequence:
            raise ValueError(f"request {sequence.request.request_id} is not waiting")
        del line[at]
        if sequence.pulls:
            self.pull_tokens -= len(sequence.tokens)
        else:
            self.compute_tokens -= len(sequence.tokens)

    def validate(self) -> None:
        """Check order, lines and the token count; raises AssertionError."""
        for line, pulls in ((self._to_compute, False), (self._to_pull, True)):
            ranks = [sequence.rank for sequence in line]
            assert ranks == sorted(set(ranks)), "order of the queue"
            assert all(sequence.pulls is pulls for sequence in line), "a sequence stands in the wrong line"
        assert self.compute_tokens == sum(len(s.tokens) for s in self._to_compute), "tokens in the queue"
        assert self.pull_tokens == sum(len(s.tokens) for s in self._to_pull), "tokens to pull in the queue"
