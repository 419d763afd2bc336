"""What an engine has to say in one turn of the event loop, said in one output, so that frontends get few
frames.

It must not know what is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Item
from tokenmill.protocol.kv_events import KvEvent
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.base import EngineOutput, Sink


class TurnOutput:
    """Gathers items and events until the turn ends. Bounded by what one turn brings."""

    def __init__(self, metrics: Callable[[], StepMetrics]) -> None:
        self.sink: Sink | None = None
        self._metrics = metrics
        self._items: list[tuple[RequestId, Item]] = []
        self._events: list[KvEvent] = []
        self._due = False

    def say(self, request_id: RequestId, item: Item) -> None:
        """Say an item with this turn's output."""
        self._items.append((request_id, item))
        self._flush_soon()

    def tell(self, events: list[KvEvent]) -> None:
        """Tell events with this turn's output."""
        self._events += events
        self._flush_soon()

    def tell_load(self) -> None:
        """Say the load now, and what has waited before it."""
        self.flush(always=True)

    def flush(self, *, always: bool = False) -> None:
        """Say now what waits; ``always``: the load also where nothing waits."""
        self._due = False
        if self.sink is None or not (always or self._items or self._events):
            return
        items, self._items = self._items, []
        events, self._events = self._events, []
        self.sink(EngineOutput(items, self._metrics(), events))

    def _flush_soon(self) -> None:
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self.flush)
