"""Which requests are taken in at all, and which limits make sense.

What can never be served is refused at once, with the reason. It must not know when a request will run.
"""

from __future__ import annotations

from tokenmill.decide.batching.batch import Batch
from tokenmill.decide.batching.tracked import Tracked, track
from tokenmill.decide.batching.types import (
    BatchingConfig,
    Instruction,
    Reject,
    RejectCode,
    SequenceRequest,
)
from tokenmill.errors import ConfigError
from tokenmill.protocol.items import FinishReason


def check_config(config: BatchingConfig) -> None:
    """Raise ConfigError, naming the field and the fix, for limits under which nothing could run."""
    least = {
        "total_blocks": config.total_blocks,
        "max_model_len": config.max_model_len - 1,
        "block_tokens": config.block_tokens,
        "token_budget": config.token_budget,
        "prefill_budget": 1 if config.prefill_budget is None else config.prefill_budget,
        "join_tokens": 1 if config.join_tokens is None else config.join_tokens,
        "max_sequences": config.max_sequences,
        "max_waiting": config.max_waiting,
    }
    for field, value in least.items():
        if value < 1:
            given = getattr(config, field)
            raise ConfigError(f"{field} is {given}: raise it to {1 + given - value} or more", param=field)
    if not 0 <= config.watermark < 1:
        raise ConfigError(
            f"watermark is {config.watermark}: give a share from 0 to below 1", param="watermark"
        )


class Intake:
    """Puts requests into the queue of ``batch`` or says why not."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._arrivals = 0

    def take(self, request: SequenceRequest, now: float) -> list[Instruction]:
        """Queue a request; return ``Reject`` or, for a replay that had already ended, ``Finish`` instead.

        Raises ValueError for an empty prompt, which the frontend refuses long before.
        """
        if not request.prompt:
            raise ValueError(f"request {request.request_id}: prompt is empty")
        batch = self._batch
        if request.request_id in batch.sequences:
            return [_reject(request, RejectCode.DUPLICATE, "request_id is in use: send a new one")]
        # Its own KV room ends a sequence when the last place is taken and one more token is known.
        most_tokens = min(batch.config.max_model_len, batch.pool_tokens + 1)
        self._arrivals += 1
        sequence = track(request, now, self._arrivals, most_tokens, batch.config.block_tokens)
        reason = self._ended_before(sequence)
        if reason is not None:
            return [sequence.finish(reason)]
        refusal = self._refusal(sequence)
        if refusal is not None:
            return [refusal]
        batch.add(sequence)
        return []

    def _ended_before(self, sequence: Tracked) -> FinishReason | None:
        """Return why a request needs no token more: a replay whose end was not heard, or no tokens asked."""
        request, length = sequence.request, len(sequence.tokens)
        if request.output and request.output[-1] in request.stop_ids and length >= sequence.stop_len:
            return FinishReason.STOP
        at_length = request.output and length >= self._batch.config.max_model_len
        if at_length or len(request.output) >= request.max_tokens:
            return FinishReason.LENGTH
        return None

    def _refusal(self, sequence: Tracked) -> Reject | None:
        batch, request, length = self._batch, sequence.request, len(sequence.tokens)
        config = batch.config
        if length >= config.max_model_len:
            return _reject(
                request,
                RejectCode.TOO_LONG,
                f"prompt has {length} tokens, and the model's context of {config.max_model_len} must also "
                "hold one output token: shorten the prompt",
            )
        if length + 1 > batch.pool_tokens:
            return _reject(
                request,
                RejectCode.NO_ROOM,
                f"prompt has {length} tokens and this engine's KV cache holds {batch.pool_tokens} in all: "
                "shorten the prompt or give the engine more KV memory",
            )
        if len(batch.waiting) >= config.max_waiting:
            return _reject(
                request,
                RejectCode.QUEUE_FULL,
                f"{len(batch.waiting)} requests are waiting (max_waiting): try again later",
            )
        return None


def _reject(request: SequenceRequest, code: RejectCode, message: str) -> Reject:
    return Reject(request.request_id, code, message)
