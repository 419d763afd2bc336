"""The words between an engine and its step scheduler.

Events are past tense facts that an engine tells the scheduler; instructions are what the scheduler
tells the engine to do. ``StepPlan`` is the largest instruction: what the next step computes.
"""

from __future__ import annotations

from collections.abc import MutableSequence
from enum import Enum, StrEnum, auto

import msgspec

from tokenmill.protocol.block_hashes import BlockNames
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import FinishReason


class BatchingConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one engine's batch.

    ``role``: prefill workers hold few sequences and a budget that just saturates the device; decode
    workers take many sequences; ``both`` mixes prefill chunks into decode steps. ``token_budget``: most
    tokens that one step computes. ``prefill_budget``: most prefill tokens in one step (None: what the
    decodes leave of ``token_budget``); in the prefill role it is the saturation point: a step takes the
    oldest prompts until it is reached and no more, since a larger batch only delays the first of them.
    ``join_tokens``: no further prompt joins a step that computes so many prefill tokens already, or more of
    one than reaches it (None: the budget is always filled). For budgets above the saturation point: there a
    prompt that is nearly done waits for all that joins its step.
    ``watermark``: share of all blocks that admission leaves free for running sequences to grow into.
    ``max_waiting``: the bound on the queue. ``max_model_len``: tokens, prompt plus output.
    """

    total_blocks: int
    max_model_len: int
    role: Role = Role.BOTH
    block_tokens: int = 16
    token_budget: int = 2048
    prefill_budget: int | None = None
    join_tokens: int | None = None
    max_sequences: int = 256
    max_waiting: int = 4096
    prefix_cache: bool = True
    watermark: float = 0.01


class SequenceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the scheduler must know of a request. Token ids only; sampling is the executor's.

    ``output``: tokens generated before (a replay); they are recomputed, not emitted again.
    ``stop_ids`` end the sequence (end-of-sequence ids included unless ignored), but not before
    ``min_tokens`` outputs. ``score_prompt``: prompt log probabilities are wanted, so that cached blocks
    cannot be used. ``names``: of its blocks, where they are known; None: hashed from the token ids. With
    names the ids do not matter: a simulation, which has lengths only, gives a bytearray as ``prompt``.
    """

    request_id: RequestId
    prompt: MutableSequence[int]
    max_tokens: int
    output: list[int] = []
    min_tokens: int = 0
    stop_ids: frozenset[int] = frozenset()
    role: Role = Role.BOTH
    receives: bool = False
    priority: int = 0
    cache_salt: str = ""
    score_prompt: bool = False
    names: BlockNames | None = None


class SequenceState(Enum):
    """Where a sequence is. Transitions stand in a table in ``scheduler``."""

    WAITING = auto()
    """In the queue, holding no blocks."""
    RECEIVING = auto()
    """Holds blocks that a transfer is filling."""
    RUNNING = auto()
    """Holds blocks; takes part in steps."""
    EXPORTED = auto()
    """Prefill done; holds blocks that a receiver may still read."""
    FINISHED = auto()
    """Holds nothing."""


class Sequence(msgspec.Struct, kw_only=True, eq=False):
    """One sequence's mutable state. Owned by the scheduler; executors read it during a step.

    ``tokens``: prompt then output. ``computed``: how many of them have their KV in ``blocks`` (always below
    ``len(tokens)`` while running: the last token is never computed yet). ``blocks``: the block table.
    ``cached_tokens``: prompt tokens found in the prefix cache at first admission.
    """

    request: SequenceRequest
    tokens: MutableSequence[int]
    prompt_len: int
    arrival: float
    state: SequenceState = SequenceState.WAITING
    computed: int = 0
    blocks: list[int] = []
    cached_tokens: int = 0
    preemptions: int = 0

    @property
    def output_len(self) -> int:
        """Tokens generated so far, replayed ones included."""
        return len(self.tokens) - self.prompt_len


class Chunk(msgspec.Struct, frozen=True, eq=False):
    """A run of one sequence's tokens to compute in a step: ``tokens[start:start + length]``.

    ``samples``: the chunk reaches the sequence's last token, whose logits give the next one.
    """

    sequence: Sequence
    start: int
    length: int
    samples: bool


class StepPlan(msgspec.Struct, frozen=True, eq=False):
    """What the next step computes. Decodes (length 1, samples) come first, then prefill chunks.

    Empty ``chunks``: nothing can run now.
    """

    step: int
    chunks: list[Chunk]
    decode_tokens: int
    prefill_tokens: int


# Events ------------------------------------------------------------------------------------------


class RequestArrived(msgspec.Struct, frozen=True):
    """A request came. Too long or a full queue is answered with ``Reject``."""

    request: SequenceRequest


class RequestCancelled(msgspec.Struct, frozen=True):
    """Nobody wants this request any more. Unknown ids are ignored."""

    request_id: RequestId


class KvArrived(msgspec.Struct, frozen=True):
    """The transfer is complete: the prompt's KV is in the blocks, ``first_token`` is output 0.

    ``moved_tokens`` were fetched in ``moving_ms`` milliseconds, waiting for the sender to compute left out.
    """

    request_id: RequestId
    first_token: int
    moved_tokens: int = 0
    moving_ms: float = 0.0


class KvLost(msgspec.Struct, frozen=True):
    """The transfer failed or was aborted; nothing writes to the blocks any more. The sequence is computed
    here instead and emits from its first new token on (the reader drops what it has already seen)."""

    request_id: RequestId


class ExportReleased(msgspec.Struct, frozen=True):
    """A receiver has taken the blocks, or the lease ended."""

    request_id: RequestId


class StepExecuted(msgspec.Struct, frozen=True, eq=False):
    """A plan was carried out. ``sampled``: one token for each of its chunks that ``samples``, in order."""

    plan: StepPlan
    sampled: list[int]


class StepAbandoned(msgspec.Struct, frozen=True, eq=False):
    """A plan could not be carried out. Its chunks are planned again, but for requests cancelled since; their
    KV may have been written in part, which computing them again mends."""

    plan: StepPlan


Event = RequestArrived | RequestCancelled | KvArrived | KvLost | ExportReleased | StepExecuted | StepAbandoned


# Instructions ------------------------------------------------------------------------------------


class RejectCode(StrEnum):
    """Why a request was not taken."""

    TOO_LONG = "context_length_exceeded"
    NO_ROOM = "kv_room_exceeded"
    QUEUE_FULL = "queue_full"
    DUPLICATE = "duplicate_request"


class Reject(msgspec.Struct, frozen=True):
    """Tell the requester that this cannot be served, and why."""

    request_id: RequestId
    code: RejectCode
    message: str


class Emit(msgspec.Struct, frozen=True):
    """Send one new token: output position ``index``."""

    request_id: RequestId
    index: int
    token: int


class Finish(msgspec.Struct, frozen=True):
    """Tell the requester that this is the end. The last token came in the ``Emit`` before it.

    ``stop_token``: the token that ended it, for reason STOP.
    """

    request_id: RequestId
    reason: FinishReason
    stop_token: int | None = None
    cached_tokens: int = 0


class OfferKv(msgspec.Struct, frozen=True):
    """Export these blocks: the KV of the first ``tokens`` tokens will be in them. ``ready``: already is."""

    request_id: RequestId
    blocks: list[int]
    tokens: int
    ready: int
    cached_tokens: int


class AdvanceKv(msgspec.Struct, frozen=True):
    """The first ``ready`` tokens of an offer are in place."""

    request_id: RequestId
    ready: int


class SealKv(msgspec.Struct, frozen=True):
    """All tokens of an offer are in place and the first output token is known. Blocks stay until
    ``ExportReleased``."""

    request_id: RequestId
    first_token: int


class WithdrawKv(msgspec.Struct, frozen=True):
    """There will be no cache for this offer (finished at the first token, cancelled, or preempted for
    good). Blocks stay until ``ExportReleased``."""

    request_id: RequestId
    reason: str


class PullKv(msgspec.Struct, frozen=True):
    """Fetch the KV of ``tokens`` prompt tokens into ``blocks``; those below ``from_token`` are here."""

    request_id: RequestId
    blocks: list[int]
    tokens: int
    from_token: int


class AbortPull(msgspec.Struct, frozen=True):
    """Stop fetching; answer with ``KvLost`` when no byte can be written any more. Blocks stay until then."""

    request_id: RequestId


Instruction = Reject | Emit | Finish | OfferKv | AdvanceKv | SealKv | WithdrawKv | PullKv | AbortPull
