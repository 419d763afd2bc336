"""Steps in which nothing but decoding happens, many at a time.

Exists for simulations: between two full blocks a decode step only makes every sequence one token longer, so
that a thousand such steps can be told in one sentence. Blocks are named and handed out in the very order that
single steps would do it. What is sampled is not looked at: a run stops before a sequence could end.

It must not know how long steps take or why they are skipped.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

from tokenmill.decide.batching.batch import Batch
from tokenmill.decide.batching.tracked import Tracked


class DecodeRun:
    """One run over the sequences that decode now. ``Scheduler.decode_run`` makes it, ``Scheduler.advance``
    counts its steps.

    ``sequences``: in the order of a plan. ``done``: steps so far. ``most``: steps before one of the sequences
    may end. ``context_tokens``: the sum of lengths that the next step reads. A block that fills at the end of
    a step stops the run there (``quiet`` is 0) until ``cross`` has named it and found room for the next.
    """

    __slots__ = ("_batch", "_borders", "_written", "context_tokens", "done", "most", "sequences")

    def __init__(self, batch: Batch, most: int) -> None:
        self._batch = batch
        self.sequences = list(batch.decoding.values())
        self.most = most
        self.done = 0
        self.context_tokens = sum([sequence.computed + 1 for sequence in self.sequences])
        block_tokens = batch.config.block_tokens
        # (step after which a block is full, place in ``sequences``)
        self._borders = [
            (block_tokens - s.computed % block_tokens, at) for at, s in enumerate(self.sequences)
        ]
        heapify(self._borders)
        self._written = [0] * len(self.sequences)

    @property
    def quiet(self) -> int:
        """Steps that can be counted at once now: until a block is full, or until the run must end."""
        return min(self._borders[0][0], self.most) - self.done

    def count(self, steps: int) -> None:
        """Note that ``steps`` more steps, at most ``quiet``, have been executed."""
        self.done += steps
        self.context_tokens += steps * len(self.sequences)

    def cross(self) -> bool:
        """Name the blocks that have just filled and give each sequence its next one, as the end of one step
        and the beginning of another do. False: the run must end here; then no block was handed out."""
        full = self._name_full_blocks()
        if self.done == self.most:
            return False
        return grow(self._batch, [s for s in full if s.computed >= s.capacity])

    def close(self) -> None:
        """Write what was skipped into the sequences, and name what has filled."""
        self._name_full_blocks()
        for at in range(len(self.sequences)):
            self._write(at)

    def _name_full_blocks(self) -> list[Tracked]:
        """Return the sequences whose blocks have just filled, in the order of a plan."""
        done, borders, batch = self.done, self._borders, self._batch
        full: list[Tracked] = []
        while borders[0][0] == done:
            at = borders[0][1]
            heapreplace(borders, (done + batch.config.block_tokens, at))
            self._write(at)
            sequence = self.sequences[at]
            if sequence.computed >= sequence.next_commit:
                batch.commit(sequence)
            full.append(sequence)
        return full

    def _write(self, at: int) -> None:
        steps = self.done - self._written[at]
        if steps:
            self._written[at] = self.done
            sequence = self.sequences[at]
            sequence.computed += steps
            sequence.tokens.extend(bytes(steps))


def grow(batch: Batch, short: list[Tracked]) -> bool:
    """Give each of ``short`` one more block, the first in rank first. False, and nothing done: there are not
    enough."""
    if len(short) > batch.pool.free_blocks:
        return False
    short.sort(key=lambda s: s.rank, reverse=True)
    for sequence in short:
        batch.grow(sequence)
    return True


def start_run(batch: Batch) -> DecodeRun | None:
    """Begin a run if nothing but decoding is to be done, with blocks for its first step handed out."""
    if batch.prefilling or not batch.decoding or len(batch.waiting):
        return None
    sequences = batch.decoding.values()
    most = min([s.end_len - len(s.tokens) for s in sequences]) - 1
    if most < 1 or not grow(batch, [s for s in sequences if s.computed >= s.capacity]):
        return None
    return DecodeRun(batch, most)
