"""All sequences of one engine, where each is, and what each change does to blocks and queues.

Every method leaves state, containers and block pool in agreement. It must not know when a change is due:
``planning`` and ``scheduler`` decide that.
"""

from __future__ import annotations

from bisect import insort

import msgspec

from tokenmill.decide.batching.block_pool import BlockPool
from tokenmill.decide.batching.tracked import Tracked
from tokenmill.decide.batching.transitions import move
from tokenmill.decide.batching.types import BatchingConfig, SequenceState
from tokenmill.decide.batching.waiting import WaitingQueue
from tokenmill.protocol.ids import RequestId


class Totals(msgspec.Struct):
    """Counts that only grow; names as in ``protocol.metrics.StepMetrics``."""

    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0
    handoffs_in: int = 0
    handoffs_out: int = 0
    handoffs_failed: int = 0
    transfer_tokens: int = 0
    transfer_ms: float = 0.0


class Batch:
    """The sequences of one engine. ``sequences`` has all that are not finished, by request id; each is
    also in just one of ``waiting``, ``receiving``, ``prefilling`` and ``decoding`` (both RUNNING),
    ``exported``. At most ``max_waiting`` plus twice ``max_sequences``, plus exports, which blocks bound.
    """

    def __init__(self, config: BatchingConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.total_blocks, config.block_tokens, config.prefix_cache)
        # A decode takes one token of every step, so more sequences than budget could starve the last.
        self.max_sequences = min(config.max_sequences, config.token_budget)
        self.totals = Totals()
        self.sequences: dict[RequestId, Tracked] = {}
        self.waiting = WaitingQueue()
        self.receiving: dict[RequestId, Tracked] = {}
        self.prefilling: list[Tracked] = []  # first in rank first
        self.decoding: dict[RequestId, Tracked] = {}
        self.exported: dict[RequestId, Tracked] = {}

    @property
    def pool_tokens(self) -> int:
        """Tokens that all blocks together hold."""
        return self.config.total_blocks * self.config.block_tokens

    @property
    def active(self) -> int:
        """Sequences that count against ``max_sequences``."""
        return len(self.decoding) + len(self.prefilling) + len(self.receiving)

    def add(self, sequence: Tracked) -> None:
        """Take a new, waiting sequence in."""
        self.sequences[sequence.request.request_id] = sequence
        self.waiting.push(sequence)

    def cached_prefix(self, sequence: Tracked) -> list[int]:
        """Return the cached blocks that can stand for the head of ``sequence``.

        Whole blocks only. What is computed here computes at least its last token, for its logits; what
        is pulled needs none, since the first token comes with the transfer.
        """
        if not self.config.prefix_cache or sequence.request.score_prompt:
            return []
        block_tokens = self.config.block_tokens
        hashes = sequence.names.extend(sequence.tokens)
        computed_here = 0 if sequence.pulls else 1
        return self.pool.match(hashes[: (len(sequence.tokens) - computed_here) // block_tokens])

    def admit(self, sequence: Tracked, cached: list[int], fresh: int) -> None:
        """Give the head of the queue its blocks: ``cached`` ones, then ``fresh`` new ones."""
        self.pool.hold(cached)
        after = cached[-1] if cached else None
        sequence.blocks = cached + self.pool.allocate(fresh, after)
        block_tokens = self.config.block_tokens
        sequence.capacity = len(sequence.blocks) * block_tokens
        sequence.computed = len(cached) * block_tokens
        sequence.next_commit = sequence.computed + block_tokens
        if sequence.preemptions == 0 and self.config.prefix_cache and not sequence.request.score_prompt:
            sequence.cached_tokens = min(sequence.computed, sequence.prompt_len)
            self.totals.prefix_hit_tokens += sequence.computed
            self.totals.prefix_query_tokens += len(sequence.tokens)
        if sequence.pulls:
            self._leave(sequence)
            move(sequence, SequenceState.RECEIVING)
            self.receiving[sequence.request.request_id] = sequence
        else:
            self.start_prefill(sequence)

    def start_prefill(self, sequence: Tracked) -> None:
        """Let a sequence that was given blocks compute what they do not hold yet."""
        self._leave(sequence)
        move(sequence, SequenceState.RUNNING)
        insort(self.prefilling, sequence, key=lambda s: (-s.rank[0], -s.rank[1]))

    def start_decode(self, sequence: Tracked) -> None:
        """Let a prefilled or received sequence, computed but for its last token, join the decodes."""
        self._leave(sequence)
        if sequence.state is not SequenceState.RUNNING:
            move(sequence, SequenceState.RUNNING)
        self.decoding[sequence.request.request_id] = sequence

    def grow(self, sequence: Tracked) -> None:
        """Give a sequence one more block; there must be a free one."""
        sequence.blocks += self.pool.allocate(1, sequence.blocks[-1])
        sequence.capacity += self.config.block_tokens

    def commit(self, sequence: Tracked) -> None:
        """Name the blocks that ``computed`` has filled since the last call, so that others find them."""
        block_tokens = self.config.block_tokens
        first, full = sequence.next_commit // block_tokens - 1, sequence.computed // block_tokens
        sequence.next_commit = (full + 1) * block_tokens
        if not self.config.prefix_cache:
            return
        hashes = sequence.names.extend(sequence.tokens)
        parent = hashes[first - 1] if first else None
        if not sequence.duplicates:
            names, blocks = hashes[first:full], sequence.blocks[first:full]
            sequence.duplicates = not self.pool.commit_run(names, blocks, parent)
        if sequence.duplicates:
            self.pool.commit_beside(hashes, sequence.blocks, first, full)

    def preempt(self, sequence: Tracked) -> None:
        """Take a running sequence's blocks and put it back to its place in the queue."""
        self._leave(sequence)
        self._release_blocks(sequence)
        move(sequence, SequenceState.WAITING)
        sequence.preemptions += 1
        self.totals.preemptions += 1
        self.waiting.push(sequence)

    def retire(self, sequence: Tracked) -> None:
        """End a sequence: EXPORTED, keeping its blocks, while its offer is open; else FINISHED."""
        self._leave(sequence)
        if sequence.offered:
            move(sequence, SequenceState.EXPORTED)
            self.exported[sequence.request.request_id] = sequence
            return
        move(sequence, SequenceState.FINISHED)
        self._release_blocks(sequence)
        del self.sequences[sequence.request.request_id]

    def _leave(self, sequence: Tracked) -> None:
        request_id = sequence.request.request_id
        match sequence.state:
            case SequenceState.WAITING:
                self.waiting.remove(sequence)
            case SequenceState.RECEIVING:
                del self.receiving[request_id]
            case SequenceState.RUNNING:
                if self.decoding.pop(request_id, None) is None:
                    self.prefilling.remove(sequence)
            case SequenceState.EXPORTED:
                del self.exported[request_id]
            case SequenceState.FINISHED:
                raise ValueError(f"request {request_id} has ended already")

    def _release_blocks(self, sequence: Tracked) -> None:
        self.pool.free(sequence.blocks)
        sequence.blocks = []
        sequence.capacity = sequence.computed = 0
        sequence.next_commit = self.config.block_tokens
