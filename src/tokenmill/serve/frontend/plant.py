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
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.items import Item


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
        on_decision: Callable[[Decision | None], None],
    ) -> Waiter:
        """Call ``on_decision`` once somebody can, or with None when waiting is over."""
        ...

    def open(
        self,
        worker: WorkerId,
        request: GenerateRequest,
        on_item: Callable[[Item], None],
        on_end: Callable[[TokenmillError | None], None],
    ) -> OpenedStream:
        """Open a stream. ``on_end`` is called exactly once unless it is cancelled."""
        ...
