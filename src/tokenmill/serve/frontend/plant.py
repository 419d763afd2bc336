"""The workers as one sequence sees them: someone to choose, and someone to open streams to.

Exists as the seam between a sequence and the set of workers. It must not know how either is done.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from typing import Protocol

from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.items import Item

Outcome = Decision | TokenmillError | None
"""What waiting comes to: who serves, why nobody does, or None where there is nobody."""


class OpenedStream(Protocol):
    """A call under way at a worker."""

    def cancel(self) -> None:
        """Stop it; no callback is called from now on."""
        ...

    def pause(self) -> None:
        """Ask for no more until ``resume``."""
        ...

    def resume(self) -> None:
        """Take more again."""
        ...


class Waiter(Protocol):
    """Someone who waits for a worker."""

    def cancel(self) -> None:
        """Wait no longer; no callback is called."""
        ...


class Plant(Protocol):
    """All workers. Callbacks are never called before the method that took them has returned."""

    def decide(self, request: RouteRequest, excluded: AbstractSet[WorkerId]) -> Decision | None:
        """Return who serves ``request``, or None when nobody can now."""
        ...

    def wait(
        self,
        request: RouteRequest,
        excluded: AbstractSet[WorkerId],
        on_decision: Callable[[Outcome], None],
    ) -> Waiter:
        """Call ``on_decision`` once somebody can, or when waiting is over."""
        ...

    def began(self, request_id: RequestId) -> None:
        """A sequence's first token came."""
        ...

    def over(self, request_id: RequestId, output_tokens: int) -> None:
        """A sequence has come to its end, good or bad, with so many tokens; may be told twice."""
        ...

    def open(
        self,
        worker: WorkerId,
        request: GenerateRequest,
        on_item: Callable[[Item], None],
        on_end: Callable[[TokenmillError | None], None],
        *,
        cached_tokens: int = 0,
    ) -> OpenedStream:
        """Open a stream. ``on_end`` is called exactly once unless it is cancelled.

        ``cached_tokens``: tokens of the prompt that the worker need not compute, as the decision has it.
        """
        ...

    def watch(self, worker: WorkerId, on_end: Callable[[TokenmillError | None], None]) -> OpenedStream:
        """Call ``on_end`` once, with the reason, when ``worker`` is lost. Nothing is opened there."""
        ...
