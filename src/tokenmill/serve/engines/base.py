"""The seam behind which tokens are made.

An ``Engine`` is what a worker runs: embedded ones (``torch``, ``sim``) step in a thread of this process,
others speak to a server of their own. An ``Executor`` is the inner seam of the embedded ones: ``stepped``
drives it with the step scheduler, so that a new embedded engine writes one ``execute``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from tokenmill.decide.batching.types import StepPlan
from tokenmill.errors import TokenmillError
from tokenmill.protocol.card import Speech
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Item, TokenLogprobs
from tokenmill.protocol.kv_events import KvEvent
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.transfer.base import KvMemory


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine is, once it has started. Fields as in ``protocol.card.WorkerCard``."""

    engine: str
    model: str
    max_model_len: int
    block_tokens: int
    kv_blocks: int
    max_sequences: int
    vocab_size: int
    eos_token_ids: list[int]
    transports: list[str]
    early_handoff: bool
    fingerprint: str
    prefill_budget: int = 0
    alone: bool = True
    constraints: list[str] = []
    speaks: Speech = Speech.TOKENS
    offers: list[str] = []


class EngineOutput(msgspec.Struct, frozen=True, eq=False):
    """All that one step has to say. ``items`` in order; a request may have several."""

    items: list[tuple[RequestId, Item]]
    metrics: StepMetrics
    kv_events: list[KvEvent]


Sink = Callable[[EngineOutput], None]


class Engine(Protocol):
    """Makes tokens. All methods are called on the event loop's thread, and so is the sink.

    For each submitted request the sink gets the items of ``protocol.items`` and exactly one end
    (``Finished`` or ``Failed``), also after ``cancel``.
    """

    async def start(self, sink: Sink) -> EngineInfo:
        """Load and be ready to serve. Raises ConfigError for what the user can mend. Cancelled: stopped."""
        ...

    def submit(self, request: GenerateRequest) -> None:
        """Take a request. Never raises for a bad one: it ends with ``Failed``."""
        ...

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; unknown ids are ignored."""
        ...

    def metrics(self) -> StepMetrics:
        """The load after the last step."""
        ...

    async def failure(self) -> str:
        """Wait until the engine can serve no more by its own fault, and say why."""
        ...

    async def stop(self) -> None:
        """End at once; requests under way end with ``Failed``. Frees device, threads and shared memory."""
        ...


class ExecutorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an executor knows after loading. ``kv_blocks`` is what fits into the memory it was given."""

    model: str
    vocab_size: int
    max_model_len: int
    kv_blocks: int
    block_tokens: int
    eos_token_ids: list[int]
    fingerprint: str
    prefill_budget: int | None = None


class StepFailed(TokenmillError):
    """A step could not be computed because of the named requests alone; the others may go on."""

    def __init__(self, message: str, request_ids: list[RequestId]) -> None:
        super().__init__(message)
        self.request_ids = request_ids


class StepResult(msgspec.Struct, frozen=True, eq=False):
    """What a step gave: for each chunk that samples, in the plan's order, a token, and log probabilities
    where asked. ``prompt_logprobs``: by request, for prompt positions ``first .. first + len`` computed in
    this step (position 0 is never scored)."""

    sampled: list[int]
    logprobs: dict[RequestId, TokenLogprobs] = {}
    prompt_logprobs: dict[RequestId, tuple[int, list[TokenLogprobs]]] = {}


class Executor(Protocol):
    """Computes steps. ``load``, ``execute`` and ``close`` are called on one dedicated thread.

    Sampling for output position i of a request draws from a generator keyed by (seed, i) alone.
    """

    @property
    def memory(self) -> KvMemory:
        """The KV memory, once loaded. A transfer may write blocks that no plan names during a step."""
        ...

    def load(self) -> ExecutorFacts:
        """Load weights and allocate KV memory. Raises ConfigError for what the user can mend."""
        ...

    def admit(self, request_id: RequestId, sampling: Sampling, prompt_len: int) -> None:
        """A sequence will take part in steps; keep what sampling needs (penalty state, generator)."""
        ...

    def retire(self, request_id: RequestId) -> None:
        """A sequence takes part no more."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute the plan's chunks: write their KV, sample where asked."""
        ...

    def close(self) -> None:
        """Free device and shared memory."""
        ...
