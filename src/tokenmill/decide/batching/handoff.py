"""The part of a sequence's life in which its KV moves between workers.

The sender offers the prompt's blocks when it admits a sequence and keeps them until ``ExportReleased``,
however the sequence ends. The receiver keeps its blocks until ``KvArrived`` or ``KvLost``, since until then a
transfer may write to them. It must not know how bytes move.
"""

from __future__ import annotations

from tokenmill.decide.batching.batch import Batch
from tokenmill.decide.batching.tracked import Tracked
from tokenmill.decide.batching.transitions import IllegalTransition
from tokenmill.decide.batching.types import (
    Instruction,
    KvArrived,
    OfferKv,
    PullKv,
    SealKv,
    SequenceState,
    WithdrawKv,
)
from tokenmill.protocol.items import FinishReason


def open_offer(sequence: Tracked) -> OfferKv:
    """Offer the KV of all known tokens of a sequence that was just admitted."""
    sequence.offered = True
    return OfferKv(
        sequence.request.request_id,
        blocks=list(sequence.blocks),
        tokens=len(sequence.tokens),
        ready=sequence.computed,
        cached_tokens=sequence.cached_tokens,
    )


def close_offer(batch: Batch, sequence: Tracked, reason: FinishReason | None) -> list[Instruction]:
    """End an exporting sequence whose first token was sampled; ``reason``: why it ends here, if it does."""
    request_id = sequence.request.request_id
    instructions: list[Instruction] = []
    if sequence.offered and reason is None:
        batch.totals.handoffs_out += 1
        instructions.append(SealKv(request_id, sequence.tokens[-1]))
    elif sequence.offered:
        instructions.append(WithdrawKv(request_id, f"finished at the first token: {reason}"))
    instructions.append(sequence.finish(reason or FinishReason.HANDOFF))
    batch.retire(sequence)
    return instructions


def release_export(batch: Batch, sequence: Tracked | None) -> None:
    """Nobody reads an offer's blocks any more. Before the end, the sequence just goes on without it."""
    if sequence is None or not sequence.offered:
        return
    sequence.offered = False
    if sequence.state is SequenceState.EXPORTED:
        batch.retire(sequence)
    elif not sequence.ended:
        batch.totals.handoffs_failed += 1


def start_pull(batch: Batch, sequence: Tracked) -> PullKv:
    """Have the KV of a sequence fetched that was just admitted, but for what the prefix cache gave."""
    tokens = len(sequence.tokens)
    return PullKv(
        sequence.request.request_id,
        blocks=sequence.blocks[: batch.pool.blocks_for(tokens)],
        tokens=tokens,
        from_token=sequence.computed,
    )


def receive(batch: Batch, sequence: Tracked | None, arrived: KvArrived) -> list[Instruction]:
    """The KV of all known tokens is in the blocks; the first token has been sent to the requester."""
    if not _await(batch, sequence):
        return []
    assert sequence is not None
    batch.totals.handoffs_in += 1
    batch.totals.transfer_tokens += arrived.moved_tokens
    batch.totals.transfer_ms += arrived.moving_ms
    sequence.computed = len(sequence.tokens)
    sequence.tokens.append(arrived.first_token)
    batch.commit(sequence)
    reason = sequence.end_reason(arrived.first_token)
    if reason is not None:
        finish = sequence.finish(reason)
        batch.retire(sequence)
        return [finish]
    batch.start_decode(sequence)
    return []


def compute_instead(batch: Batch, sequence: Tracked | None) -> None:
    """The transfer failed: compute here what the prefix cache did not have."""
    if not _await(batch, sequence):
        return
    assert sequence is not None
    batch.totals.handoffs_failed += 1
    if sequence.computed == len(sequence.tokens):
        # All was cached, but the last token must be computed for its logits, and a cached block must
        # not be written: the block kept for the first token takes the last one's place.
        spare = sequence.blocks.pop()
        batch.pool.part(sequence.blocks[:-1])
        batch.pool.free([sequence.blocks.pop()])
        sequence.blocks.append(spare)
        block_tokens = batch.config.block_tokens
        sequence.capacity -= block_tokens
        sequence.computed -= block_tokens
        sequence.next_commit -= block_tokens
    batch.start_prefill(sequence)


def _await(batch: Batch, sequence: Tracked | None) -> bool:
    """Note that a transfer has ended; False when nobody wants the sequence any more."""
    if sequence is None:
        return False
    if sequence.state is not SequenceState.RECEIVING:
        raise IllegalTransition(f"request {sequence.request.request_id} awaits no transfer")
    sequence.pulls = False
    if sequence.ended:
        batch.retire(sequence)
        return False
    return True
