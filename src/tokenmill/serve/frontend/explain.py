"""GET /v1/explain/{request_id}: why a request went where it went, and where its time went.

Exists so that a person can ask after the fact. Notes are kept of the last requests, running ones among them;
JSON is made of them when somebody asks. It must not know text or token ids: nothing that was said is told.
"""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from urllib.parse import unquote

import msgspec

from tokenmill.clock import Clock
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.decide.router.types import Decision, Weighed
from tokenmill.errors import NotFound, TokenmillError
from tokenmill.protocol.items import HandoffLost
from tokenmill.serve.frontend.http.messages import Answer, Request, Response
from tokenmill.serve.frontend.migration import Migration
from tokenmill.serve.frontend.timeline import Attempt, RequestTimeline, SequenceTimeline, Trouble

EXPLAIN_PREFIX = "/v1/explain/"
EXPLAIN_ROUTE = "/v1/explain/{request_id}"

Json = dict[str, object]


class ExplainStore:
    """What is known of the last ``keep`` requests, by ``x-request-id`` and by the answer's id.

    ``frontend``: this frontend's name. Of two requests with the same ``x-request-id`` the later one counts.
    """

    def __init__(self, clock: Clock, router: RouterSettings, *, keep: int, frontend: str) -> None:
        self.keep = keep
        self.frontend = frontend
        self._clock = clock
        self._router = router
        self._kept: deque[RequestTimeline] = deque()
        self._by_id: dict[str, RequestTimeline] = {}

    def begin(
        self,
        endpoint: str,
        request: Request,
        answer_id: str,
        received_at: float,
        prompt_tokens: int,
        *,
        model: str = "",
    ) -> RequestTimeline:
        """Return where to note what happens to a request whose prompt is tokenized now.

        ``received_at``: seconds on the frontend's clock.
        """
        now = self._clock.now()
        timeline = RequestTimeline(
            endpoint,
            request.headers.get("x-request-id", ""),
            answer_id,
            received_at=received_at,
            wall_s=self._clock.wall() - (now - received_at),
            model=model,
        )
        timeline.tokenized(now, prompt_tokens)
        if self.keep:
            self._remember(timeline)
        return timeline

    def failed(self, request_id: str, status: str, error: TokenmillError) -> None:
        """A request ended with ``error`` before it had an answer."""
        timeline = self._by_id.get(request_id)
        if timeline is not None:
            timeline.ended(self._clock.now(), status, Trouble.of(error))

    def tell(self, name: str) -> Json:
        """Return what is known of the request with this id. Raises NotFound."""
        timeline = self._by_id.get(name)
        if timeline is None:
            raise NotFound(self._why_not(name))
        weights = {name: getattr(self._router.weights, name) for name in self._router.weights.__slots__}
        routing = {"policy": self._router.policy, "weights": weights}
        return {"frontend": self.frontend, **_request(timeline), "routing": routing}

    def _remember(self, timeline: RequestTimeline) -> None:
        if len(self._kept) >= self.keep:
            oldest = self._kept.popleft()
            for name in (oldest.request_id, oldest.answer_id):
                if self._by_id.get(name) is oldest:
                    del self._by_id[name]
        self._kept.append(timeline)
        for name in (timeline.request_id, timeline.answer_id):
            if name:
                self._by_id[name] = timeline

    def _why_not(self, name: str) -> str:
        if not self.keep:
            return "nothing is kept of requests here: explain_requests is 0"
        return (
            f"{name!r} is not among the last {self.keep} generations of this frontend ({self.frontend}); "
            "it may be older (explain_requests), or another frontend of the factory has served it"
        )


class ExplainApi:
    """The route."""

    def __init__(self, store: ExplainStore) -> None:
        self._store = store

    async def __call__(self, request: Request) -> Answer:
        """Answer with all that is known of a request, so far."""
        name = unquote(request.path[len(EXPLAIN_PREFIX) :])
        return Response(200, msgspec.json.encode(self._store.tell(name)))


def _request(timeline: RequestTimeline) -> Json:
    zero = timeline.received_at
    sequences = timeline.sequences
    return {
        "request_id": timeline.request_id,
        "id": timeline.answer_id,
        "endpoint": timeline.endpoint,
        "model": timeline.model,
        "started": datetime.fromtimestamp(timeline.wall_s, UTC).isoformat(timespec="microseconds"),
        "state": "running" if timeline.ended_at is None else "ended",
        "status": timeline.status,
        "error": _trouble(timeline.trouble),
        "tokens": {
            "prompt": timeline.prompt_tokens,
            "output": sum(sequence.output_tokens for sequence in sequences),
        },
        "timeline_ms": _relative(
            zero,
            received=timeline.received_at,
            tokenized=timeline.tokenized_at,
            finished=timeline.ended_at,
        ),
        "choices": [_choice(index, sequence, zero) for index, sequence in enumerate(sequences)],
    }


def _choice(index: int, sequence: SequenceTimeline, zero: float) -> Json:
    return {
        "index": index,
        "tokens": {
            "prompt": sequence.prompt_tokens,
            "cached": sequence.cached_tokens,
            "output": sequence.output_tokens,
        },
        "finish_reason": sequence.reason,
        "error": _trouble(sequence.trouble),
        "not_moved": None if sequence.not_moved is None else sequence.not_moved.value,
        "attempts": [_attempt(attempt, zero) for attempt in sequence.attempts],
        "timeline_ms": _relative(zero, finished=sequence.ended_at),
    }


def _attempt(attempt: Attempt, zero: float) -> Json:
    return {
        **_decision(attempt.decision),
        "first_output_position": attempt.first_index,
        "timeline_ms": _relative(
            zero,
            asked=attempt.asked_at,
            queued=attempt.queued_at,
            admitted=attempt.routed_at if attempt.queued_at is not None else None,
            routed=attempt.routed_at,
            sent=attempt.sent_at,
            cache_offered=attempt.offered_at,
            first_token=attempt.first_token_at,
            handoff_failed=attempt.handoff_lost_at,
            cache_transferred=attempt.transferred_at,
            moved=attempt.moved_at,
        ),
        "handoff_failed": _handoff_lost(attempt.handoff_lost),
        "moved": _migration(attempt.migration),
    }


def _handoff_lost(lost: HandoffLost | None) -> Json | None:
    return None if lost is None else {"reason": lost.reason, "error": lost.message}


def _decision(decision: Decision | None) -> Json:
    if decision is None:
        return {"decode_worker": None, "prefill_worker": None, "reasons": ["nobody can take it now"]}
    evidence = decision.evidence
    return {
        "decode_worker": decision.decode_worker,
        "prefill_worker": decision.prefill_worker,
        "reasons": decision.reasons,
        "predicted": {
            "prefill_tokens": decision.prefill_tokens,
            "cached_tokens": decision.cached_tokens,
        },
        "ways": [] if evidence is None else evidence.paths(),
        "candidates": [] if evidence is None else [_candidate(each) for each in evidence.explain()],
    }


def _candidate(weighed: Weighed) -> Json:
    return {
        "worker": weighed.worker,
        "role": weighed.role.value,
        "chosen": weighed.chosen or None,
        "load": weighed.load,
        "cached_tokens": weighed.cached._asdict(),
        "cached_tokens_exact": weighed.cached_exact,
        "cost": weighed.terms,
    }


def _migration(migration: Migration | None) -> Json | None:
    if migration is None:
        return None
    return {
        "reason": migration.reason.value,
        "phase": migration.phase.value,
        "from_worker": migration.worker,
        "replayed_tokens": migration.replayed_tokens,
        "error": migration.message,
    }


def _trouble(trouble: Trouble | None) -> Json | None:
    return None if trouble is None else {"code": trouble.code, "message": trouble.message}


def _relative(zero: float, **times: float | None) -> Json:
    """Return what has happened, in order, in milliseconds after ``zero``."""
    happened = [(at, name) for name, at in times.items() if at is not None]
    happened.sort(key=lambda each: each[0])
    return {name: round((at - zero) * 1000, 3) for at, name in happened}
