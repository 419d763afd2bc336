"""All workers of the registry: who is there, and who is chosen.

Exists as the shell around the router: it feeds cards, loads and caches in and carries decisions out. It must
not know HTTP, text or what a sequence does with a decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.stages import Readiness, readiness
from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.errors import NoWorker
from tokenmill.protocol.card import WORKERS_PREFIX, WorkerCard
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import Role, WorkerId
from tokenmill.serve.fabric.registry import SYNCED, Change, Registry
from tokenmill.serve.frontend.linked_stream import LossWatch, LostStream, OnEnd, OnItem
from tokenmill.serve.frontend.plant import OpenedStream
from tokenmill.serve.frontend.stall import StallLimits
from tokenmill.serve.frontend.worker_link import WorkerLink

_log = structlog.get_logger(__name__)

_USUAL_STALL = StallLimits()


class WorkerSet:
    """``start`` it, ask it, ``close`` it. All methods belong to the loop's thread.

    ``on_broken`` is called with the reason when the registry can be watched no longer: without it this set
    would lose its workers one by one and never learn of new ones. ``on_routed``: when the router has
    something that other frontends should know. ``serves``: which workers are meant; all, if not said.
    """

    def __init__(
        self,
        registry: Registry,
        router: Router,
        clock: Clock,
        *,
        worker_wait_s: float,
        stall: StallLimits = _USUAL_STALL,
        on_broken: Callable[[str], None],
        on_routed: Callable[[], None] | None = None,
        serves: Callable[[WorkerCard], bool] | None = None,
    ) -> None:
        self.router = router
        self.on_change: list[Callable[[], None]] = []
        """Called after a worker came or went, told its load or ended a stream: who waits may have a chance.
        From inside a connection's callback, and often: take a note and look later."""
        self.routed = on_routed or _nothing
        """Something was routed, sent or ended."""
        self._registry = registry
        self._clock = clock
        self._worker_wait_s = worker_wait_s
        self._stall = stall
        self._on_broken = on_broken
        self._serves = serves or _everyone
        self._links: dict[str, WorkerLink] = {}
        self._by_worker: dict[WorkerId, WorkerLink] = {}
        self._usable: list[WorkerCard] = []
        self._context_tokens = 0
        self._ready = asyncio.Event()
        self._synced = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Watch the registry; return when all present workers are known. Cancelled: call ``close``."""
        self._task = asyncio.create_task(self._run(), name="workers")
        synced = asyncio.create_task(self._synced.wait())
        try:
            await asyncio.wait((self._task, synced), return_when=asyncio.FIRST_COMPLETED)
        finally:
            synced.cancel()
        if self._task.done():
            self._task.result()
        self._task.add_done_callback(self._watch_ended)

    async def close(self) -> None:
        """Close all connections. Cancelled: call it again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _watch_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self._on_broken(f"the registry cannot be watched any more: {task.exception() or 'it ended'}")

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group, self._registry.watch(WORKERS_PREFIX) as changes:
            async for change in changes:
                if change.key == SYNCED:
                    self._synced.set()
                else:
                    self._apply(change, group)

    def _apply(self, change: Change, group: asyncio.TaskGroup) -> None:
        link = self._links.get(change.key)
        if change.value is None:
            if link is not None:
                link.retire()
            return
        try:
            card = msgspec.json.decode(change.value, type=WorkerCard)
        except msgspec.DecodeError as error:
            _log.warning("worker card cannot be read", key=change.key, error=str(error))
            return
        if not self._serves(card):
            return  # another model's: what a worker serves never changes
        if link is not None and link.card.address == card.address:
            link.update(card)
            return
        if link is not None:
            link.retire()
        link = WorkerLink(card, self.router, self._clock, self, self._stall)
        self._links[change.key] = self._by_worker[card.worker_id] = link
        group.create_task(self._serve(change.key, link), name=f"worker {card.worker_id}")

    async def _serve(self, key: str, link: WorkerLink) -> None:
        """Run one link. Cancelled: its connection is closed."""
        try:
            await link.run()
        finally:
            if self._links.get(key) is link:
                del self._links[key]
                del self._by_worker[link.card.worker_id]
            self.usable_changed()

    # What links say ------------------------------------------------------------------------------------

    def usable_changed(self) -> None:
        """A worker became usable or ceased to be."""
        self._usable = [link.card for link in self._links.values() if link.usable]
        contexts = [card.max_model_len for card in self._usable if card.max_model_len]
        self._context_tokens = min(contexts, default=0)
        if self.readiness().ready:
            self._ready.set()
        else:
            self._ready.clear()
        self.load_changed()

    def load_changed(self) -> None:
        """A worker told its load, or a stream to it is over."""
        for callback in self.on_change:
            callback()

    # For requests --------------------------------------------------------------------------------------

    async def context_tokens(self) -> int:
        """Return the shortest context (prompt plus output, in tokens) of the workers; waits for a first one.

        Raises NoWorker after ``worker_wait_s``.
        """
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(self._worker_wait_s):
                    while not self._ready.is_set():  # who came may have gone before we run
                        await self._ready.wait()
            except TimeoutError as error:
                raise NoWorker(f"{self.readiness().notes[0]}; try again later") from error
        return self._context_tokens

    def decide(self, request: RouteRequest, excluded: AbstractSet[WorkerId]) -> Decision | None:
        """``Plant``: who serves ``request``, or None."""
        decision = self.router.route(request, self._clock.now(), excluded)
        if decision is not None:
            self.routed()
        return decision

    def open(
        self,
        worker: WorkerId,
        request: GenerateRequest,
        on_item: OnItem,
        on_end: OnEnd,
        *,
        cached_tokens: int = 0,
    ) -> OpenedStream:
        """``Plant``: open a stream to a worker."""
        link = self._by_worker.get(worker)
        if link is None:
            return LostStream(worker, on_end)
        return link.open(request, on_item, on_end, cached_tokens=cached_tokens)

    def watch(self, worker: WorkerId, on_end: OnEnd) -> LossWatch | LostStream:
        """``Plant``: tell when a worker is lost."""
        link = self._by_worker.get(worker)
        if link is None:
            return LostStream(worker, on_end)
        return link.watch(on_end)

    # For people ----------------------------------------------------------------------------------------

    @property
    def usable(self) -> list[WorkerCard]:
        """Workers that new requests may go to: another list after each change."""
        return self._usable

    @property
    def shortest_context(self) -> int:
        """Prompt plus output in tokens, of the worker with the shortest context; 0 without workers."""
        return self._context_tokens

    def readiness(self) -> Readiness:
        """Whether requests can be served now."""
        return readiness(self._usable)

    def links(self) -> Iterable[WorkerLink]:
        """All workers known now."""
        return tuple(self._links.values())

    def count(self) -> dict[str, dict[str, int]]:
        """Return how many workers there are, by role and state."""
        return count_workers(self._links.values())


def count_workers(links: Iterable[WorkerLink]) -> dict[str, dict[str, int]]:
    """Return how many workers there are, by role and state."""
    counts: dict[str, dict[str, int]] = {role.value: {} for role in Role}
    for link in links:
        states = counts[link.card.role.value]
        states[link.state] = states.get(link.state, 0) + 1
    return counts


def _nothing() -> None:
    """Nobody wants to know."""


def _everyone(_card: WorkerCard) -> bool:
    """There is one model, and all serve it."""
    return True
