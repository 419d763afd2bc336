"""One request for text as it is served: its flow joined with workers' streams.

Exists as the shell around ``text_flow``. It must not know HTTP or JSON: a listener takes pieces as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from tokenmill.decide.router.types import RouteRequest
from tokenmill.errors import TokenmillError, WorkerFailed
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import Item
from tokenmill.protocol.text import TextRequest, TextUsage
from tokenmill.serve.frontend.flow_words import (
    Abort,
    Cancel,
    ClientGone,
    DeadlinePassed,
    Open,
    Route,
    StreamLost,
)
from tokenmill.serve.frontend.generation import SequenceTimes
from tokenmill.serve.frontend.migration import MigrationLimits
from tokenmill.serve.frontend.plant import OpenedStream, Plant
from tokenmill.serve.frontend.standing import Standing
from tokenmill.serve.frontend.text_flow import CompleteText, DeliverText, TextFlow, TextInstruction
from tokenmill.serve.frontend.worker_choice import Chosen, WorkerChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """What a client wants. ``packed``: the prompt's head as if it were token ids, for the router to know it
    again; ``without``: workers that cannot serve it, asked for at each choice of a worker."""

    request_id: RequestId
    request: TextRequest
    packed: bytes
    standing: Standing
    without: Callable[[], frozenset[WorkerId]]


class TextListener(Protocol):
    """Who takes an answer. Exactly one end, unless cancelled."""

    def text_made(self, pieces: list[bytes]) -> None:
        """New pieces of the answer: JSON arrays of choices."""
        ...

    def text_finished(
        self, worker: WorkerId, pieces: list[bytes], reason: str, usage: TextUsage | None
    ) -> None:
        """A good end, with the last pieces. ``worker``: who made it."""
        ...

    def sequence_failed(self, index: int, error: TokenmillError, /) -> None:
        """A bad end."""
        ...


class RunningText:
    """Runs one request until its end or ``cancel``. All methods belong to the loop's thread."""

    def __init__(
        self,
        spec: TextSpec,
        plant: Plant,
        listener: TextListener,
        times: SequenceTimes,
        limits: MigrationLimits,
    ) -> None:
        self._spec = spec
        self._plant = plant
        self._listener = listener
        self._times = times
        self._timeline = times.timeline
        self._flow = TextFlow(spec.request_id, spec.request, limits=limits, priority=spec.standing.priority)
        self._stream: OpenedStream | None = None
        self._worker = WorkerId("")
        self._choice = WorkerChoice(plant, self._timeline)
        self._paused = False
        self._began = False

    def start(self) -> None:
        """Begin: choose a worker and open a stream, now if there are workers."""
        self._carry_out(self._flow.begin())

    def cancel(self) -> None:
        """Nobody wants it any more. The listener hears no end."""
        self._carry_out(self._flow.handle(ClientGone()))
        self._choice.stop()
        self._timeline.cancelled(0)
        self._plant.over(self._spec.request_id, 0)

    def expire(self, error: TokenmillError) -> None:
        """It took too long: end with ``error``."""
        self._choice.stop()
        self._carry_out(self._flow.handle(DeadlinePassed(error)))

    def pause(self) -> None:
        """Ask the worker for no more until ``resume``."""
        self._paused = True
        if self._stream is not None:
            self._stream.pause()

    def resume(self) -> None:
        """Take more again."""
        self._paused = False
        if self._stream is not None:
            self._stream.resume()

    # Events ------------------------------------------------------------------------------------------

    def _on_item(self, stream: int, item: Item) -> None:
        self._carry_out(self._flow.received(stream, item))

    def _on_end(self, stream: int, error: TokenmillError | None) -> None:
        lost = error or WorkerFailed("the worker ended the stream too early")
        self._carry_out(self._flow.handle(StreamLost(stream, lost)))

    def _on_chosen(self, chosen: Chosen) -> None:
        self._carry_out(self._flow.handle(chosen))

    # Instructions ------------------------------------------------------------------------------------

    def _carry_out(self, instructions: list[TextInstruction]) -> None:
        for instruction in instructions:
            if isinstance(instruction, DeliverText):
                self._came()
                self._listener.text_made(instruction.pieces)
            elif isinstance(instruction, CompleteText):
                self._complete(instruction)
            elif isinstance(instruction, Open):
                self._open(instruction)
            elif isinstance(instruction, Cancel):
                if self._stream is not None:
                    self._stream.cancel()
            elif isinstance(instruction, Route):
                self._route(instruction)
            else:
                self._abort(instruction)

    def _route(self, route: Route) -> None:
        spec = self._spec
        wanted = RouteRequest(
            request_id=spec.request_id,
            packed=spec.packed,
            output_tokens=0,
            session=spec.standing.session,
            tenant=spec.standing.tenant,
            priority=spec.standing.priority,
            deadline_at=spec.standing.deadline_at,
            replay=route.replay,
        )
        self._choice.ask(wanted, route, self._on_chosen, without=spec.without())

    def _open(self, opening: Open) -> None:
        self._worker = opening.worker
        self._stream = self._plant.open(
            opening.worker,
            opening.request,
            partial(self._on_item, opening.stream),
            partial(self._on_end, opening.stream),
        )
        self._timeline.opened(Role.BOTH)
        self._times.attempt_began()
        if self._paused:
            self._stream.pause()

    def _came(self) -> None:
        self._times.tokens_came()
        if not self._began:
            self._began = True
            self._plant.began(self._spec.request_id)

    def _complete(self, end: CompleteText) -> None:
        if end.pieces:
            self._came()
        usage = end.usage
        output_tokens = usage.output_tokens if usage else 0
        if usage is not None:
            self._timeline.prompt_tokens = usage.prompt_tokens
        self._timeline.finished(end.reason, output_tokens, usage.cached_tokens if usage else 0)
        self._plant.over(self._spec.request_id, output_tokens)
        self._listener.text_finished(self._worker, end.pieces, end.reason, usage)

    def _abort(self, end: Abort) -> None:
        self._timeline.failed(end.error, end.not_moved, 0)
        self._plant.over(self._spec.request_id, 0)
        self._listener.sequence_failed(0, end.error)
