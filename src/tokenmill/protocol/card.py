"""Worker -> registry: who I am and what I can do. Stored as JSON, so that a person can read it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from tokenmill.protocol.ids import Role, WorkerId

WORKERS_PREFIX = "workers/"
"""Registry keys of cards are this plus the worker id."""


class WorkerState(StrEnum):
    """What a frontend may do with a worker."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class WorkerCard(msgspec.Struct, frozen=True, kw_only=True):
    """What others must know to use a worker.

    ``address``: "unix:/path" or "tcp://host:port" of its request server. ``stage``: the name in the factory
    file. ``max_model_len``: tokens, prompt plus output. ``transports``: KV transport drivers it can receive
    by, best first. ``early_handoff``: it offers the cache before prefill ends. ``kv_blocks``,
    ``block_tokens``: room. ``prefill_budget``: most prompt tokens in one step, 0: not known. ``fingerprint``:
    equal fingerprints mean that two workers' KV caches have the same meaning (model, weights' shape, dtype).
    """

    worker_id: WorkerId
    role: Role
    stage: str
    state: WorkerState
    address: str
    engine: str
    model: str
    max_model_len: int
    block_tokens: int
    kv_blocks: int
    max_sequences: int
    prefill_budget: int = 0
    eos_token_ids: list[int] = []
    vocab_size: int = 0
    transports: list[str] = []
    early_handoff: bool = False
    fingerprint: str = ""
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    version: str = ""
