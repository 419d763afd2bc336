"""Worker -> registry: who I am and what I can do. Stored as JSON, so that a person can read it."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from tokenmill.protocol.ids import Role, WorkerId
from tokenmill.protocol.step_table import StepTable

WORKERS_PREFIX = "workers/"
"""Registry keys of cards are this plus the worker id."""


class WorkerState(StrEnum):
    """What a frontend may do with a worker."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class Speech(StrEnum):
    """What a worker takes and gives."""

    TOKENS = "tokens"
    TEXT = "text"


class Prices(msgspec.Struct, frozen=True, kw_only=True):
    """What a million tokens cost there, in the currency of its owner's bills."""

    input: float = 0.0
    cached: float = 0.0
    output: float = 0.0

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> float:
        """Return the price of so many tokens; ``cached_tokens`` are some of ``input_tokens``."""
        fresh = input_tokens - cached_tokens
        return (fresh * self.input + cached_tokens * self.cached + output_tokens * self.output) / 1e6


class WorkerCard(msgspec.Struct, frozen=True, kw_only=True):
    """What others must know to use a worker.

    ``address``: "unix:/path" or "tcp://host:port" of its request server. ``stage``: the name in the factory
    file. ``max_model_len``: tokens, prompt plus output. ``transports``: KV transport drivers it can receive
    by, best first. ``early_handoff``: it offers the cache before prefill ends. ``kv_blocks``,
    ``block_tokens``: room. ``prefill_budget``: most prompt tokens in one step, 0: not known.
    ``step_table``: how long its steps take, where that was measured (some kilobytes). ``fingerprint``:
    equal fingerprints mean that two workers' KV caches have the same meaning (model, weights' shape, dtype).
    ``speaks``: text, where its engine takes no token ids; then ``offers`` names the models that its server
    lists, where clients may ask for any of them. ``prices``: None: it tells none. ``alone``: it can compute a
    prompt and go on with it; else it is of use only together with a worker of the other role.
    ``constraints``: fields of a client's request that shape the output and that it understands.
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
    step_table: StepTable | None = None
    eos_token_ids: list[int] = []
    vocab_size: int = 0
    transports: list[str] = []
    early_handoff: bool = False
    fingerprint: str = ""
    speaks: Speech = Speech.TOKENS
    offers: list[str] = []
    prices: Prices | None = None
    alone: bool = True
    constraints: list[str] = []
    host: str = ""
    pid: int = 0
    started_at: float = 0.0
    version: str = ""
