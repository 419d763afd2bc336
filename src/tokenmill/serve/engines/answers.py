"""From the scheduler's instructions to the items that frontends read. No I/O."""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.decide.batching.types import Emit, Finish, Instruction, Reject, RejectCode
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import (
    Failed,
    Finished,
    FinishReason,
    Item,
    PromptScored,
    TokenLogprobs,
    Tokens,
)
from tokenmill.serve.engines.base import StepResult
from tokenmill.serve.engines.handover import KvInstruction

_REJECTIONS: dict[RejectCode, tuple[int, bool]] = {
    RejectCode.TOO_LONG: (400, False),
    RejectCode.NO_ROOM: (422, False),
    RejectCode.QUEUE_FULL: (429, True),
    RejectCode.DUPLICATE: (400, False),
}
"""HTTP status, and whether another worker may take the request."""


class Answers:
    """Composes the items of each step and knows which requests are still owed an end."""

    def __init__(self) -> None:
        self._open: dict[RequestId, GenerateRequest] = {}
        self._failures: dict[RequestId, Failed] = {}
        self._scores: dict[RequestId, list[TokenLogprobs | None]] = {}

    def begin(self, request: GenerateRequest) -> None:
        """A request was accepted."""
        self._open[request.request_id] = request
        if request.sampling.prompt_logprobs is not None:
            self._scores[request.request_id] = [None]

    def fail_at_end(self, request_id: RequestId, failure: Failed) -> None:
        """The next end of this request is ``failure``, whatever the scheduler calls it."""
        self._failures[request_id] = failure

    def open_requests(self) -> list[RequestId]:
        """Requests that have had no end yet."""
        return list(self._open)

    def compose(
        self,
        instructions: Iterable[Instruction],
        result: StepResult | None,
        items: list[tuple[RequestId, Item]],
        moves: list[KvInstruction],
    ) -> None:
        """Append to ``items`` what frontends are told, and to ``moves`` what concerns KV blocks."""
        logprobs = result.logprobs if result is not None else {}
        if result is not None and result.prompt_logprobs:
            self._collect_scores(result)
        emitted: Emit | None = None
        for instruction in instructions:
            if isinstance(instruction, Emit):
                self._flush(emitted, logprobs, items)
                emitted = instruction
                continue
            if isinstance(instruction, Finish):
                if emitted is not None and emitted.request_id != instruction.request_id:
                    self._flush(emitted, logprobs, items)
                    emitted = None
                self._finish(instruction, emitted, logprobs, items)
                emitted = None
            elif isinstance(instruction, Reject):
                status, retryable = _REJECTIONS[instruction.code]
                failed = Failed(status, instruction.code.value, instruction.message, retryable)
                items.append((instruction.request_id, failed))
            else:
                moves.append(instruction)
        self._flush(emitted, logprobs, items)

    def _flush(
        self,
        emitted: Emit | None,
        logprobs: dict[RequestId, TokenLogprobs],
        items: list[tuple[RequestId, Item]],
    ) -> None:
        if emitted is None:
            return
        request_id = emitted.request_id
        self._send_scores(request_id, items)
        scored = logprobs.get(request_id) if logprobs else None
        items.append(
            (request_id, Tokens(emitted.index, [emitted.token], None if scored is None else [scored]))
        )

    def _finish(
        self,
        finish: Finish,
        emitted: Emit | None,
        logprobs: dict[RequestId, TokenLogprobs],
        items: list[tuple[RequestId, Item]],
    ) -> None:
        request_id = finish.request_id
        self._send_scores(request_id, items)
        self._open.pop(request_id, None)
        self._scores.pop(request_id, None)
        failure = self._failures.pop(request_id, None)
        if failure is not None and finish.reason is FinishReason.CANCELLED:
            items.append((request_id, failure))
            return
        scored = logprobs.get(request_id) if emitted is not None else None
        items.append(
            (
                request_id,
                Finished(
                    index=emitted.index if emitted is not None else 0,
                    tokens=[emitted.token] if emitted is not None else [],
                    reason=finish.reason,
                    stop_token=finish.stop_token,
                    cached_tokens=finish.cached_tokens,
                    logprobs=None if scored is None else [scored],
                ),
            )
        )

    def _collect_scores(self, result: StepResult) -> None:
        for request_id, (first, scores) in result.prompt_logprobs.items():
            known = self._scores.get(request_id)
            if known is not None:
                known[first:] = scores  # a recomputed stretch replaces what was there

    def _send_scores(self, request_id: RequestId, items: list[tuple[RequestId, Item]]) -> None:
        if not self._scores:
            return
        scores = self._scores.get(request_id)
        request = self._open.get(request_id)
        if scores is not None and request is not None and len(scores) == len(request.prompt):
            del self._scores[request_id]
            items.append((request_id, PromptScored(scores)))
