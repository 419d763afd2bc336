"""A request's choices of workers: asked of the plant, waited for where that may be, logged and timed.

Exists so that requests for tokens and for text choose in one way. It must not know flows, nor what is opened
at whom was chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import structlog

from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.errors import TokenmillError
from tokenmill.protocol.ids import WorkerId
from tokenmill.serve.frontend.flow_words import DeadlinePassed, NoWorkerFound, Route, Routed
from tokenmill.serve.frontend.plant import Outcome, Plant, Waiter
from tokenmill.serve.frontend.timeline import SequenceTimeline

_log = structlog.get_logger(__name__)

Chosen = Routed | NoWorkerFound | DeadlinePassed


class WorkerChoice:
    """Of one sequence, one after the other."""

    def __init__(self, plant: Plant, timeline: SequenceTimeline) -> None:
        self.cached_tokens = 0
        """Tokens of the prompt that need not be computed, as the last decision has it."""
        self._plant = plant
        self._timeline = timeline
        self._waiter: Waiter | None = None

    def ask(
        self,
        wanted: RouteRequest,
        route: Route,
        on_chosen: Callable[[Chosen], None],
        *,
        delivered_tokens: int = 0,
        without: frozenset[WorkerId] = frozenset(),
    ) -> None:
        """Choose as a flow wants it, none of ``without`` either.

        ``on_chosen`` is called once, often before this returns; not at all if ``stop`` is called first.
        """
        moved = route.moved
        if moved is not None:
            _log.info(
                "request moves", request_id=wanted.request_id, worker=moved.worker, reason=moved.reason.value,
                phase=moved.phase.value, error=moved.message,
            )  # fmt: skip
        self._timeline.asked(delivered_tokens, moved)
        excluded = route.excluded | without
        decision = self._plant.decide(wanted, excluded)
        if decision is None and route.may_wait:
            self._timeline.queued()
            self._waiter = self._plant.wait(wanted, excluded, partial(self._on_outcome, on_chosen))
        else:
            self._decided(on_chosen, decision)

    def stop(self) -> None:
        """Wait no longer."""
        if self._waiter is not None:
            self._waiter.cancel()
            self._waiter = None

    def _on_outcome(self, on_chosen: Callable[[Chosen], None], outcome: Outcome) -> None:
        self._waiter = None
        if isinstance(outcome, TokenmillError):
            self._timeline.routed(None)
            on_chosen(DeadlinePassed(outcome))
        else:
            self._decided(on_chosen, outcome)

    def _decided(self, on_chosen: Callable[[Chosen], None], decision: Decision | None) -> None:
        self._timeline.routed(decision)
        if decision is None:
            on_chosen(NoWorkerFound())
            return
        self.cached_tokens = decision.cached_tokens
        on_chosen(Routed(decision.decode_worker, decision.prefill_worker))
