"""What happened to a request, and when: noted while it happens, told when somebody asks.

Exists so that ``explain`` and the histograms of stages have one source that costs the token path nothing: a
note is a clock reading at a change of state, never at a token. It must not know HTTP, text or token ids.
All times are seconds on the frontend's clock; None: it has not happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from tokenmill.decide.router.types import Decision
from tokenmill.errors import TokenmillError
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import HandoffLost
from tokenmill.serve.frontend.migration import Migration, NotMoved
from tokenmill.serve.frontend.openai.errors import code_of


class Trouble(NamedTuple):
    """An error without its traceback, which would keep a whole request alive."""

    code: str | None
    message: str

    @classmethod
    def of(cls, error: TokenmillError) -> Trouble:
        """Return what a client is told of ``error``."""
        return cls(code_of(error), error.message)


class StageTimes(Protocol):
    """Who counts stages over all requests."""

    def routed(self, took_s: float) -> None:
        """A decision was made at once."""
        ...

    def prefilled(self, took_s: float) -> None:
        """The first token came, so long after the request was sent to a worker."""
        ...

    def transferred(self, took_s: float) -> None:
        """The decode worker spoke first, so long after the prefill worker's token."""
        ...

    def handoff_lost(self, reason: str) -> None:
        """A decode worker computes a prompt whose cache did not come."""
        ...

    def moved(self, migration: Migration) -> None:
        """A sequence left a worker and looks for another one."""
        ...

    def not_moved(self, why: NotMoved) -> None:
        """A sequence lost its worker and ends."""
        ...


class Attempt:
    """One choice of workers, and what came of it. At most ``max_attempts`` a sequence, and one more."""

    __slots__ = (
        "asked_at", "decision", "first_index", "first_token_at", "handoff_lost", "handoff_lost_at",
        "migration", "moved_at", "offered_at", "queued_at", "routed_at", "sent_at", "transferred_at",
    )  # fmt: skip

    def __init__(self, asked_at: float, first_index: int) -> None:
        self.asked_at = asked_at
        self.first_index = first_index
        """Output position of the attempt's first token: so many were delivered before."""
        self.decision: Decision | None = None
        self.queued_at: float | None = None
        self.routed_at: float | None = None
        self.sent_at: float | None = None
        self.offered_at: float | None = None
        self.first_token_at: float | None = None
        self.transferred_at: float | None = None
        self.handoff_lost_at: float | None = None
        self.handoff_lost: HandoffLost | None = None
        self.moved_at: float | None = None
        self.migration: Migration | None = None


class SequenceTimeline:
    """One choice of a request."""

    __slots__ = (
        "_attempt", "_now", "_stages", "attempts", "cached_tokens", "ended_at", "not_moved",
        "output_tokens", "prompt_tokens", "reason", "trouble",
    )  # fmt: skip

    def __init__(self, prompt_tokens: int, now: Callable[[], float], stages: StageTimes) -> None:
        self.prompt_tokens = prompt_tokens
        self.attempts: list[Attempt] = []
        self.output_tokens = 0
        self.cached_tokens = 0
        self.ended_at: float | None = None
        self.reason: str | None = None
        """"stop", "length" or "cancelled"; None: it runs, or has failed."""
        self.trouble: Trouble | None = None
        self.not_moved: NotMoved | None = None
        self._now = now
        self._stages = stages
        self._attempt: Attempt

    def asked(self, delivered_tokens: int, migration: Migration | None) -> None:
        """Workers are asked for; ``migration``: what was left."""
        now = self._now()
        if migration is not None:
            self._attempt.moved_at = now
            self._attempt.migration = migration
            self._stages.moved(migration)
        elif self.attempts and self._attempt.decision is None:
            return  # asked again
        self._attempt = Attempt(now, delivered_tokens)
        self.attempts.append(self._attempt)

    def queued(self) -> None:
        """Nobody can take it now."""
        self._attempt.queued_at = self._now()

    def routed(self, decision: Decision | None) -> None:
        """Workers were chosen, or None: nobody is there."""
        attempt, now = self._attempt, self._now()
        if decision is None:
            return
        if attempt.queued_at is None:
            self._stages.routed(now - attempt.asked_at)
        attempt.routed_at = now
        attempt.decision = decision

    def opened(self, role: Role) -> None:
        """A worker was sent the sequence."""
        if role is Role.DECODE:
            self._attempt.offered_at = self._now()
        else:
            self._attempt.sent_at = self._now()

    def first_token(self, now: float) -> None:
        """The attempt's first token came."""
        attempt = self._attempt
        attempt.first_token_at = now
        if attempt.sent_at is not None:
            self._stages.prefilled(now - attempt.sent_at)

    def handed_over(self) -> None:
        """The decode worker spoke for the first time."""
        attempt, now = self._attempt, self._now()
        attempt.transferred_at = now
        if attempt.first_token_at is not None:
            self._stages.transferred(now - attempt.first_token_at)

    def handoff_lost(self, lost: HandoffLost) -> None:
        """The decode worker computes the prompt itself."""
        self._attempt.handoff_lost_at = self._now()
        self._attempt.handoff_lost = lost
        self._stages.handoff_lost(lost.reason)

    def finished(self, reason: str, output_tokens: int, cached_tokens: int) -> None:
        """A good end."""
        self.ended_at = self._now()
        self.reason = reason
        self.output_tokens = output_tokens
        self.cached_tokens = cached_tokens

    def failed(self, error: TokenmillError, not_moved: NotMoved | None, output_tokens: int) -> None:
        """A bad end."""
        self.ended_at = self._now()
        self.trouble = Trouble.of(error)
        self.not_moved = not_moved
        self.output_tokens = output_tokens
        if not_moved is not None:
            self._stages.not_moved(not_moved)

    def cancelled(self, output_tokens: int) -> None:
        """Nobody wants it any more."""
        if self.ended_at is None:
            self.ended_at = self._now()
            self.reason = "cancelled"
            self.output_tokens = output_tokens


class RequestTimeline:
    """One request. ``wall_s``: when it came, seconds since 1970. ``request_id``: ``x-request-id``;
    ``answer_id``: the answer's "id"."""

    __slots__ = (
        "answer_id", "ended_at", "endpoint", "model", "prompt_tokens", "received_at", "request_id",
        "sequences",
        "status", "tokenized_at", "trouble", "wall_s",
    )  # fmt: skip

    def __init__(
        self,
        endpoint: str,
        request_id: str,
        answer_id: str,
        *,
        received_at: float,
        wall_s: float,
        model: str = "",
    ) -> None:
        self.endpoint = endpoint
        self.model = model
        self.request_id = request_id
        self.answer_id = answer_id
        self.received_at = received_at
        self.wall_s = wall_s
        self.tokenized_at: float | None = None
        self.prompt_tokens = 0
        self.sequences: list[SequenceTimeline] = []
        self.ended_at: float | None = None
        self.status: str | None = None
        """The HTTP status in the end, "499" where the client left; None: it runs."""
        self.trouble: Trouble | None = None
        """What ended it before any sequence began."""

    def tokenized(self, now: float, prompt_tokens: int) -> None:
        """The prompt is there in token ids."""
        self.tokenized_at = now
        self.prompt_tokens = prompt_tokens

    def ended(self, now: float, status: str, trouble: Trouble | None = None) -> None:
        """It is over; only the first end counts."""
        if self.ended_at is None:
            self.ended_at = now
            self.status = status
            self.trouble = trouble
