"""Moving a sequence from one worker to another: why, how far to go for it, and why not.

Exists so that flow, metrics, explain and clients speak of it in the same words. It must not know how a
sequence is moved.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import msgspec

from tokenmill.errors import (
    BadRequest,
    NoWorker,
    Overloaded,
    TokenmillError,
    WorkerFailed,
    WorkerLost,
    WorkerStalled,
)
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.items import Failed

_RETRY_AFTER_S = 1.0

LEAVING_CODES = frozenset({"worker_draining", "worker_stopping"})
"""Codes of ``Failed`` by which a worker says that it is going."""

HANDOFF_CODE = "handoff_failed"
"""Code of ``Failed`` by which one of a pair says that the handoff between them failed."""

_Error = TypeVar("_Error", bound=TokenmillError)


class MigrationReason(StrEnum):
    """Why a sequence leaves a worker."""

    LOST = "lost"
    """The worker died or its connection broke."""
    STALLED = "stalled"
    """The worker is there and says nothing."""
    DRAINED = "drained"
    """The worker is leaving."""
    REFUSED = "refused"
    """The worker is full."""
    FAILED = "failed"
    """The worker said that it cannot, or broke the protocol."""
    HANDOFF = "handoff"
    """The cache did not come, and the decode worker's engine cannot compute it itself."""


class Phase(StrEnum):
    """How far a sequence has come on its worker."""

    PREFILL = "prefill"
    """It has had no new token there yet."""
    DECODE = "decode"
    """It has."""


class NotMoved(StrEnum):
    """Why a sequence that lost its worker is not continued on another one."""

    ATTEMPTS = "attempts"
    """All attempts are used."""
    TOO_LONG = "too_long"
    """There would be too much to compute again."""
    NO_WORKER = "no_worker"
    """No other worker can take it."""
    DELIVERED = "delivered"
    """It is text, some of which was sent: another server would not go on where this one stopped."""


class Migration(msgspec.Struct, frozen=True):
    """A sequence leaves ``worker``. ``replayed_tokens``: prompt and delivered output, to be read again by the
    next worker. ``message``: for people."""

    reason: MigrationReason
    phase: Phase
    worker: WorkerId
    replayed_tokens: int
    message: str


class MigrationLimits(msgspec.Struct, frozen=True):
    """How far to go to save a sequence. ``max_attempts``: workers that may be tried, the first included; 1 is
    none but the first. ``max_tokens``: longest replay, prompt and delivered output; 0 is no limit."""

    max_attempts: int = 3
    max_tokens: int = 0


class Refusal(msgspec.Struct, frozen=True):
    """A sequence is not moved. ``error``: what its client is told, with the reason. ``why`` None: it never
    had a worker."""

    error: TokenmillError
    why: NotMoved | None


class Attempts:
    """The workers that one sequence has had. ``number`` counts those it has left, ``excluded`` names them."""

    __slots__ = ("_last_error", "_limits", "_may_return", "excluded", "number")

    def __init__(self, limits: MigrationLimits) -> None:
        self.number = 0
        self.excluded: frozenset[WorkerId] = frozenset()
        self._limits = limits
        self._may_return: frozenset[WorkerId] = frozenset()
        self._last_error: TokenmillError | None = None

    def leave(
        self, moved: Migration, error: TokenmillError, pair: frozenset[WorkerId] = frozenset()
    ) -> Refusal | None:
        """The sequence leaves a worker because of ``error``; None: it may have another one. ``pair``: those
        between which a handoff failed; which of them is to blame is not known."""
        limits = self._limits
        self.number += 1
        self._last_error = error
        if self.number >= limits.max_attempts:
            why = f"it was attempt {self.number} of {limits.max_attempts} (migration.max_attempts)"
            return Refusal(with_reason(error, why), NotMoved.ATTEMPTS)
        tokens = moved.replayed_tokens
        if 0 < limits.max_tokens < tokens and moved.reason is not MigrationReason.REFUSED:
            why = f"{tokens} tokens are too many to read again (migration.max_tokens is {limits.max_tokens})"
            return Refusal(with_reason(error, why), NotMoved.TOO_LONG)
        self.excluded |= {moved.worker}
        if moved.reason in (MigrationReason.LOST, MigrationReason.STALLED):
            self._may_return |= {moved.worker}
        if moved.reason is MigrationReason.HANDOFF:
            self.excluded |= pair
            self._may_return |= pair
        return None

    def nobody(self, message: str) -> Refusal | None:
        """Nobody can take it. None: ask again, since those that were only lost are allowed again: they may
        have come back. Once."""
        if self._last_error is None:
            return Refusal(NoWorker(message), None)
        returned, self._may_return = self._may_return, frozenset()
        self.excluded -= returned
        if returned:
            return None
        error = with_reason(self._last_error, "no other worker can take the request over")
        return Refusal(error, NotMoved.NO_WORKER)

    def id_of(self, request_id: RequestId) -> RequestId:
        """What the present attempt is called: a worker may still be cleaning up after an earlier one."""
        return RequestId(f"{request_id}.{self.number}") if self.number else request_id


class WorkerRefused(WorkerFailed):
    """A worker's ``Failed`` passed on: its own status and code."""

    def __init__(self, failed: Failed) -> None:
        super().__init__(failed.message)
        self.own_code = failed.code
        self.own_status = failed.status


def error_of(failed: Failed) -> TokenmillError:
    """Return the error that a client should see for a worker's ``Failed``."""
    if failed.status == Overloaded.status:
        return Overloaded(failed.message, retry_after_s=_RETRY_AFTER_S)
    if failed.status == BadRequest.status:
        return BadRequest(failed.message)
    return WorkerRefused(failed)


def reason_of(error: TokenmillError) -> MigrationReason:
    """Return what kind of trouble with a worker this is."""
    if isinstance(error, WorkerStalled):
        return MigrationReason.STALLED
    if isinstance(error, WorkerLost):
        return MigrationReason.LOST
    if isinstance(error, Overloaded):
        return MigrationReason.REFUSED
    if isinstance(error, WorkerRefused) and error.own_code in LEAVING_CODES:
        return MigrationReason.DRAINED
    if isinstance(error, WorkerRefused) and error.own_code == HANDOFF_CODE:
        return MigrationReason.HANDOFF
    return MigrationReason.FAILED


def with_reason(error: _Error, why: str) -> _Error:
    """Return the same error with ``why`` added to its message; ``error`` may be another stream's too."""
    kind = type(error)
    added = kind.__new__(kind)
    added.__dict__.update(error.__dict__)
    added.message = f"{error.message}; {why}"
    added.args = (added.message,)
    added.__cause__ = error
    return added
