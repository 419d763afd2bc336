"""All workers of the registry: who is there, who is chosen, who waits.

Exists as the shell around the router: it feeds cards, connections and loads in and carries decisions out. It
must not know HTTP, text or what a sequence does with a decision.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.decide.router.stages import Readiness, StageRouter, readiness
from tokenmill.decide.router.types import Candidate, Decision, RouteRequest
from tokenmill.errors import NoWorker
from tokenmill.protocol.card import WORKERS_PREFIX, WorkerCard
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import Role, WorkerId
from tokenmill.serve.fabric.registry import SYNCED, Change, Registry
from tokenmill.serve.frontend.plant import OpenedStream
from tokenmill.serve.frontend.worker_link import LostStream, OnEnd, OnItem, WorkerLink

_log = structlog.get_logger(__name__)

OnDecision = Callable[[Decision | None], None]


class WorkerSet:
    """``start`` it, ask it, ``close`` it. All methods belong to the loop's thread.

    ``on_broken`` is called with the reason when the registry can be watched no longer: without it this set
    would lose its workers one by one and never learn of new ones.
    """

    def __init__(
        self,
        registry: Registry,
        router: StageRouter,
        clock: Clock,
        *,
        worker_wait_s: float,
        on_broken: Callable[[str], None],
    ) -> None:
        self._registry = registry
        self._router = router
        self._clock = clock
        self._worker_wait_s = worker_wait_s
        self._on_broken = on_broken
        self._links: dict[str, WorkerLink] = {}
        self._by_worker: dict[WorkerId, WorkerLink] = {}
        self._candidates: list[Candidate] = []
        self._context_tokens = 0
        # Sequences and requests that wait for a worker; bounded by client connections times their choices.
        self._waiting: dict[WaitingRequest, None] = {}
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
        """Close all connections and end all waiting. Cancelled: call it again."""
        for waiting in tuple(self._waiting):
            waiting.give_up()
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
        if link is not None and link.card.address == card.address:
            link.update(card)
            return
        if link is not None:
            link.retire()
        link = WorkerLink(card, self._clock, self._on_change)
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
            self._on_change()

    def _on_change(self) -> None:
        usable = [link for link in self._links.values() if link.usable]
        self._candidates = [link.candidate for link in usable]
        self._context_tokens = min((link.card.max_model_len for link in usable), default=0)
        if self.readiness().ready:
            self._ready.set()
            for waiting in tuple(self._waiting):
                waiting.look_again()
        else:
            self._ready.clear()

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
        return self._router.choose(self._candidates, request, self._clock.now(), excluded)

    def wait(
        self, request: RouteRequest, excluded: AbstractSet[WorkerId], on_decision: OnDecision
    ) -> WaitingRequest:
        """``Plant``: call ``on_decision`` once somebody can serve, or with None after ``worker_wait_s``."""
        waiting = WaitingRequest(self, request, excluded, on_decision, self._worker_wait_s)
        self._waiting[waiting] = None
        return waiting

    def stop_waiting(self, waiting: WaitingRequest) -> None:
        """Strike one that waits."""
        self._waiting.pop(waiting, None)

    def open(
        self, worker: WorkerId, request: GenerateRequest, on_item: OnItem, on_end: OnEnd
    ) -> OpenedStream:
        """``Plant``: open a stream to a worker."""
        link = self._by_worker.get(worker)
        if link is None:
            return LostStream(worker, on_end)
        return link.open(request, on_item, on_end)

    # For people ----------------------------------------------------------------------------------------

    @property
    def shortest_context(self) -> int:
        """Prompt plus output in tokens, of the worker with the shortest context; 0 without workers."""
        return self._context_tokens

    def readiness(self) -> Readiness:
        """Whether requests can be served now."""
        return readiness(candidate.card for candidate in self._candidates)

    def links(self) -> Iterable[WorkerLink]:
        """All workers known now."""
        return tuple(self._links.values())

    def count(self) -> dict[str, dict[str, int]]:
        """Return how many workers there are, by role and state."""
        counts: dict[str, dict[str, int]] = {role.value: {} for role in Role}
        for link in self._links.values():
            states = counts[link.card.role.value]
            states[link.state] = states.get(link.state, 0) + 1
        return counts


class WaitingRequest:
    """One that waits for a worker, for a limited time."""

    def __init__(
        self,
        workers: WorkerSet,
        request: RouteRequest,
        excluded: AbstractSet[WorkerId],
        on_decision: OnDecision,
        wait_s: float,
    ) -> None:
        self._workers = workers
        self._request = request
        self._excluded = excluded
        self._on_decision = on_decision
        self._timer = asyncio.get_running_loop().call_later(wait_s, self.give_up)

    def look_again(self) -> None:
        """Something has changed."""
        decision = self._workers.decide(self._request, self._excluded)
        if decision is not None:
            self.cancel()
            self._on_decision(decision)

    def give_up(self) -> None:
        """Waiting is over."""
        self.cancel()
        self._on_decision(None)

    def cancel(self) -> None:
        """Wait no longer; no callback is called."""
        self._timer.cancel()
        self._workers.stop_waiting(self)
