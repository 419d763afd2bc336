"""What the next step computes: decodes first, then prefill begun, then new sequences.

Decodes come first since a reader waits for each of their tokens. Prefill is served in order, and the step's
prefill budget is always filled, by a part of the last prompt if need be. That is right in every role: the
budget is the point up to which a step takes about the same time however many tokens it computes, so that a
part that fits under it delays nobody, while leaving it out wastes the device and, under load, delays all who
come later (prompts of 0.6 budgets each would use 60% of the device in every step). A larger batch than the
budget does delay its first prompts, to the time of its last: hence no step goes beyond. Where the budget is
larger than that point, for the sake of long prompts, ``join_tokens`` says how far a step is shared.

It must not know what the tokens are or how the engine computes.
"""

from __future__ import annotations

import math

from tokenmill.decide.batching.batch import Batch
from tokenmill.decide.batching.handoff import open_offer, start_pull
from tokenmill.decide.batching.tracked import Tracked
from tokenmill.decide.batching.types import Chunk, Instruction, SequenceState


class StepDraft:
    """A step in the making. ``sequences[i]`` is the sequence of ``chunks[i]``; decodes stand first."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.instructions: list[Instruction] = []
        preempted_before = batch.totals.preemptions
        self._grow_decodes()
        decoding = batch.decoding.values()
        self.sequences: list[Tracked] = [s for s in decoding if s.computed < s.capacity]
        self.chunks: list[Chunk] = [Chunk(s, s.computed, 1, True) for s in self.sequences]
        self.decode_tokens = len(self.chunks)
        self._room = batch.config.token_budget - self.decode_tokens
        if batch.config.prefill_budget is not None:
            self._room = min(self._room, batch.config.prefill_budget)
        self._join_tokens = batch.config.join_tokens
        self.prefill_tokens = 0
        for sequence in batch.prefilling:
            self._add_prefill(sequence)
        # Blocks that were short a moment ago are not for newcomers.
        if batch.waiting and batch.totals.preemptions == preempted_before:
            self._admit()

    def _grow_decodes(self) -> None:
        """See that each decode has room for its last token's KV; the first in rank takes first.

        One for which there is none, and none after it to preempt, keeps its blocks and sits out the step:
        what it waits for is held by transfers, or by those before it, which preempt it if they must.
        """
        short = [s for s in self._batch.decoding.values() if s.computed >= s.capacity]
        short.sort(key=lambda s: s.rank, reverse=True)
        for sequence in short:
            if sequence.state is SequenceState.RUNNING and self._free_one(sequence):
                self._batch.grow(sequence)

    def _free_one(self, sequence: Tracked) -> bool:
        """Have a free block for ``sequence``, preempting those after it if need be; False: there is none."""
        batch = self._batch
        while not batch.pool.free_blocks:
            running = [*batch.decoding.values(), *batch.prefilling]
            # A transfer may be reading the blocks of those that export.
            last = min((s for s in running if not s.exports), key=lambda s: s.rank)
            if last is sequence:
                return False
            batch.preempt(last)
        return True

    def _add_prefill(self, sequence: Tracked) -> None:
        start, end = sequence.computed, len(sequence.tokens)
        length = min(self._room, end - start)
        if length > 0:
            self.sequences.append(sequence)
            self.chunks.append(Chunk(sequence, start, length, start + length == end))
            self._room -= length
            self.prefill_tokens += length
            if self._join_tokens is not None:
                self._room = min(self._room, self._join_tokens - self.prefill_tokens)

    def _admit(self) -> None:
        """Take sequences from the queue, in order, while there is room for the first of them.

        Lack of blocks or of places stops everyone, so that the first gets what becomes free. Lack of token
        budget does not stop sequences that are pulled: they need none.
        """
        batch = self._batch
        while batch.active < batch.max_sequences:
            sequence = batch.waiting.first(only_pulled=self._room <= 0)
            if sequence is None or not self._try_admit(sequence):
                return
            if sequence.pulls:
                self.instructions.append(start_pull(batch, sequence))
                continue
            if sequence.exports:
                self.instructions.append(open_offer(sequence))
            self._add_prefill(sequence)

    def _try_admit(self, sequence: Tracked) -> bool:
        """Give ``sequence`` blocks for all its tokens if they are there, above what must stay free.

        What must stay free is the watermark, and for one that was preempted also a block for each decode,
        lest the same happen again at once. Nothing when nobody runs: so the first always gets in.
        """
        batch = self._batch
        pool, length = batch.pool, len(sequence.tokens)
        kept_free = 0
        if batch.active:
            kept_free = math.ceil(batch.config.watermark * pool.total_blocks)
            kept_free += len(batch.decoding) if sequence.preemptions else 0
        # A pulled sequence comes with its first token, whose KV needs a place as well.
        needed = pool.blocks_for(length + 1 if sequence.pulls else length)
        cached = batch.cached_prefix(sequence)
        fresh = needed - len(cached)
        if fresh + kept_free > pool.free_blocks - pool.evictable_among(cached):
            return False
        batch.admit(sequence, cached, fresh)
        return True
