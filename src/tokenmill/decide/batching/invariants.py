"""What must hold between any two calls of the scheduler. Read it to learn how the parts hang together.

Runs in tests after every event; it must not change anything.
"""

from __future__ import annotations

from tokenmill.decide.batching.batch import Batch
from tokenmill.decide.batching.tracked import Tracked
from tokenmill.decide.batching.types import SequenceState, StepPlan
from tokenmill.protocol.block_hashes import block_hashes


def validate(batch: Batch, planned: list[Tracked], plan: StepPlan | None) -> None:
    """Check everything; raises AssertionError that names what is broken."""
    batch.pool.validate(sequence.blocks for sequence in batch.sequences.values())
    batch.waiting.validate()
    _check_containers(batch)
    for sequence in batch.sequences.values():
        _check_lengths(batch, sequence)
        _check_state(sequence, in_flight=sequence in planned)
    _check_plan(batch, planned, plan)


def _check_containers(batch: Batch) -> None:
    places: list[tuple[SequenceState, list[Tracked]]] = [
        (SequenceState.WAITING, list(batch.waiting)),
        (SequenceState.RECEIVING, list(batch.receiving.values())),
        (SequenceState.RUNNING, [*batch.decoding.values(), *batch.prefilling]),
        (SequenceState.EXPORTED, list(batch.exported.values())),
    ]
    for state, members in places:
        for sequence in members:
            name = sequence.request.request_id
            assert sequence.state is state, f"{name} is {sequence.state} but stands with {state}"
            assert batch.sequences.get(name) is sequence, f"{name} is not among the sequences"
    assert sum(len(members) for _, members in places) == len(batch.sequences), "a sequence is lost"
    assert batch.active <= batch.max_sequences, "more sequences than max_sequences"
    ranks = [sequence.rank for sequence in batch.prefilling]
    assert ranks == sorted(ranks, reverse=True), "order of the prefilling sequences"
    assert all(s.computed == len(s.tokens) - 1 for s in batch.decoding.values()), "decodes lack one token"


def _check_lengths(batch: Batch, sequence: Tracked) -> None:
    name, block_tokens = sequence.request.request_id, batch.config.block_tokens
    known = len(sequence.tokens)
    assert sequence.tokens[: sequence.prompt_len] == sequence.request.prompt, f"{name}: prompt changed"
    assert sequence.capacity == len(sequence.blocks) * block_tokens, f"{name}: capacity"
    assert sequence.computed <= sequence.capacity, f"{name}: KV beyond its blocks"
    assert len(set(sequence.blocks)) == len(sequence.blocks), f"{name}: a block twice in its table"
    assert sequence.next_commit == (sequence.computed // block_tokens + 1) * block_tokens, f"{name}: commit"
    names = sequence.names.hashes
    hashed = sequence.tokens[: len(names) * block_tokens]
    assert len(hashed) == len(names) * block_tokens, f"{name}: hash of a block not full"
    if sequence.request.names is None:
        assert names == block_hashes(hashed, block_tokens, sequence.request.cache_salt), name
    assert known <= batch.config.max_model_len, f"{name}: longer than max_model_len"
    assert known <= batch.pool_tokens + 1, f"{name}: longer than the pool"


def _check_state(sequence: Tracked, *, in_flight: bool) -> None:
    name, known = sequence.request.request_id, len(sequence.tokens)
    assert not sequence.offered or sequence.exports, f"{name}: offered but does not export"
    match sequence.state:
        case SequenceState.WAITING:
            assert not sequence.blocks, f"{name}: waits with blocks"
            assert sequence.computed == 0, f"{name}: waits with KV"
            assert not sequence.ended, f"{name}: waits though it ended"
            assert not sequence.offered, f"{name}: waits while its blocks are offered"
        case SequenceState.RECEIVING:
            assert sequence.pulls, f"{name}: receives nothing"
            assert sequence.computed <= known < sequence.capacity, f"{name}: no place for its first token"
        case SequenceState.RUNNING:
            assert not sequence.pulls, f"{name}: runs during a transfer"
            assert sequence.computed < known, f"{name}: its last token is computed already"
            assert in_flight or not sequence.ended, f"{name}: runs though it ended"
            assert known <= sequence.capacity + 1, f"{name}: more than one place behind"
        case SequenceState.EXPORTED:
            assert sequence.offered, f"{name}: exported without an offer"
            assert sequence.ended, f"{name}: exported but not ended"
        case SequenceState.FINISHED:
            raise AssertionError(f"{name}: finished but not forgotten")


def _check_plan(batch: Batch, planned: list[Tracked], plan: StepPlan | None) -> None:
    chunks = [] if plan is None else plan.chunks
    assert [chunk.sequence for chunk in chunks] == planned, "planned sequences against the plan"
    if plan is None:
        return
    assert plan.decode_tokens + plan.prefill_tokens == sum(c.length for c in chunks), "tokens of the plan"
    assert plan.decode_tokens + plan.prefill_tokens <= batch.config.token_budget, "token_budget"
    if batch.config.prefill_budget is not None:
        assert plan.prefill_tokens <= batch.config.prefill_budget, "prefill_budget"
    shared = sum(chunk.length for chunk in plan.chunks[plan.decode_tokens + 1 :])
    if batch.config.join_tokens is not None and shared:
        assert plan.prefill_tokens <= batch.config.join_tokens, "join_tokens"
    for place, chunk in enumerate(chunks):
        sequence = planned[place]
        assert sequence.state is SequenceState.RUNNING, "a planned sequence left before its step ended"
        assert chunk.start == sequence.computed, "a chunk starts where KV ends"
        end = chunk.start + chunk.length
        assert end <= min(sequence.capacity, len(sequence.tokens)), "a chunk beyond blocks or tokens"
        assert chunk.samples == (end == len(sequence.tokens)), "a chunk samples at the last token"
        assert place >= plan.decode_tokens or (chunk.length == 1 and chunk.samples), "decodes come first"
