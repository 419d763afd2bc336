"""Engine -> worker -> router, planner: what the last step did and what is waiting."""

from __future__ import annotations

from enum import IntEnum

import msgspec


class Circuit(IntEnum):
    """Whether a worker lets requests through to a server that is not its own."""

    CLOSED = 0
    """It does: all is well, or there is no such server."""
    HALF_OPEN = 1
    """It tries one."""
    OPEN = 2
    """The server has failed too often: nobody is let through for a while."""


class StepMetrics(msgspec.Struct, frozen=True, array_like=True):
    """Load of one engine after a step. Counts ending in ``_total`` only grow.

    Tokens and blocks are counts, ``step_ms`` is the wall time of the last step in milliseconds.
    ``kv_blocks_used`` counts blocks that a sequence or an export holds; cached blocks that could be
    evicted count as free. ``prefill_context_tokens``: over the last step's prefill tokens, the sum of tokens
    that each attended to; ``decode_context_tokens``: the sum of its decoding sequences' lengths.
    ``transfer_tokens_total`` and ``transfer_ms_total``: KV fetched by the handoffs that came in, and the time
    spent on it in milliseconds, waiting for the sender to compute left out. ``receiving_tokens``: whose KV is
    being fetched or waits for that. ``circuit``: of an
    engine behind a circuit breaker. ``averaged``: what is said of the last step is the mean over some time,
    in which the engine may have stood still now and then.
    """

    step: int = 0
    step_ms: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    running: int = 0
    waiting: int = 0
    receiving: int = 0
    exported: int = 0
    waiting_prefill_tokens: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    prefix_hit_tokens_total: int = 0
    prefix_query_tokens_total: int = 0
    prefill_tokens_total: int = 0
    decode_tokens_total: int = 0
    preemptions_total: int = 0
    handoffs_in_total: int = 0
    handoffs_out_total: int = 0
    handoffs_failed_total: int = 0
    prefill_context_tokens: int = 0
    decode_context_tokens: int = 0
    transfer_tokens_total: int = 0
    transfer_ms_total: float = 0.0
    receiving_tokens: int = 0
    circuit: Circuit = Circuit.CLOSED
    averaged: bool = False
