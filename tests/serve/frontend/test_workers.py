"""The worker set's shell, where the tests of whole requests do not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from tests.waiting import until

from tokenmill.clock import SystemClock
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.errors import ServiceError, TokenmillError, WorkerLost
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import BlockHash, RequestId, Role, WorkerId
from tokenmill.protocol.kv_events import BlocksStored, CacheCleared, KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.fabric.registry import SYNCED, Change, Registry, open_registry
from tokenmill.serve.frontend.workers import WorkerSet
from tokenmill.testing.scripted_worker import ScriptedWorker


class Breaking:
    """A registry whose watch works until ``broken`` is set."""

    def __init__(self) -> None:
        self.broken = asyncio.Event()

    @asynccontextmanager
    async def watch(self, _prefix: str) -> AsyncIterator[AsyncIterator[Change]]:
        yield self._changes()

    async def _changes(self) -> AsyncIterator[Change]:
        yield Change(SYNCED, None)
        await self.broken.wait()
        raise ServiceError("the folder is gone")


def a_router() -> Router:
    return Router(RouterSettings(policy="least-loaded"), seed=1)


async def test_a_watch_that_breaks_is_reported_once() -> None:
    registry, reasons = Breaking(), []
    workers = WorkerSet(registry, a_router(), SystemClock(), worker_wait_s=1, on_broken=reasons.append)
    await workers.start()
    assert reasons == []
    registry.broken.set()
    await until(lambda: reasons)
    await workers.close()
    assert len(reasons) == 1
    assert "registry" in reasons[0]


async def test_closing_is_no_breakage() -> None:
    reasons: list[str] = []
    workers = WorkerSet(Breaking(), a_router(), SystemClock(), worker_wait_s=1, on_broken=reasons.append)
    await workers.start()
    await workers.close()
    await asyncio.sleep(0)
    assert reasons == []


# What the router is told -----------------------------------------------------------------------------------


class NotingRouter(Router):
    """Notes the facts that it is told. ``refuse``: takes the next batches for gaps."""

    def __init__(self, *, wants_kv: bool = True) -> None:
        super().__init__(RouterSettings(policy="least-loaded"), seed=1)
        self.facts: list[tuple] = []
        self.kv: list[KvEvents] = []
        self.refuse = 0
        self._asks = wants_kv

    @property
    def wants_kv(self) -> bool:
        return self._asks

    def worker_ready(self, card: WorkerCard) -> None:
        self.facts.append(("ready", card.worker_id))

    def worker_gone(self, worker: WorkerId) -> None:
        self.facts.append(("gone", worker))

    def load_reported(self, worker: WorkerId, metrics: StepMetrics, now: float) -> None:
        self.facts.append(("load", worker, metrics.running))

    def sent(self, worker, request_id, prefill_tokens, now, tokens=0) -> None:
        self.facts.append(("sent", worker, request_id, prefill_tokens, tokens))

    def ended(self, worker: WorkerId, request_id: RequestId) -> None:
        self.facts.append(("ended", worker, request_id))

    def kv_changed(self, worker: WorkerId, batch: KvEvents, now: float) -> bool:
        self.kv.append(batch)
        if self.refuse:
            self.refuse -= 1
            return False
        return True


class Shell:
    """A worker set with a noting router on a registry of its own."""

    def __init__(self, registry: Registry, router: NotingRouter, workers: WorkerSet) -> None:
        self.registry, self.router, self.workers = registry, router, workers
        self.changes = 0
        workers.on_change.append(self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def said(self, *words: str) -> list[tuple]:
        return [fact for fact in self.router.facts if fact[0] in words]


@asynccontextmanager
async def shell(router: NotingRouter | None = None) -> AsyncIterator[Shell]:
    registry = open_registry("memory:")
    await registry.start()
    router = router or NotingRouter()
    workers = WorkerSet(registry, router, SystemClock(), worker_wait_s=1, on_broken=pytest.fail)
    await workers.start()
    try:
        yield Shell(registry, router, workers)
    finally:
        await workers.close()
        await registry.stop()


@asynccontextmanager
async def one_worker(made: Shell, name: str = "w", **options: object) -> AsyncIterator[ScriptedWorker]:
    worker = ScriptedWorker(made.registry, name, lambda _request: [1, 2, 3], **options)
    await worker.start()
    try:
        await until(lambda: any(link.usable for link in made.workers.links()))
        yield worker
    finally:
        await worker.stop()


def stored(*hashes: int) -> BlocksStored:
    return BlocksStored([BlockHash(block) for block in hashes])


def request(role: Role = Role.BOTH, **fields: object) -> GenerateRequest:
    return GenerateRequest(
        request_id=RequestId("r"), prompt=[1] * 50, sampling=Sampling(max_tokens=3), role=role, **fields
    )


async def test_the_router_knows_a_worker_as_long_as_it_is_usable() -> None:
    async with shell() as made, one_worker(made) as worker:
        assert made.said("ready") == [("ready", "w")]
        await worker.announce(WorkerState.DRAINING)
        await until(lambda: made.said("gone"))
        await worker.announce(WorkerState.READY)
        await until(lambda: len(made.said("ready")) == 2)
        await worker.crash()
        await until(lambda: len(made.said("gone")) == 2)
    assert [fact[0] for fact in made.said("ready", "gone")] == ["ready", "gone"] * 2


async def test_loads_and_streams_are_told_and_who_waits_hears_of_it() -> None:
    async with shell() as made, one_worker(made) as worker:
        worker.report(StepMetrics(running=7))
        await until(lambda: ("load", "w", 7) in made.router.facts)
        before, ends = made.changes, []
        made.workers.open(WorkerId("w"), request(), lambda _item: None, ends.append, cached_tokens=16)
        await until(lambda: ends)
        assert ends == [None]
        assert made.said("sent", "ended") == [("sent", "w", "r", 34, 50), ("ended", "w", "r")]
        assert made.changes > before


async def test_a_decode_stream_computes_nothing_and_a_cancelled_one_ends_once() -> None:
    async with shell() as made, one_worker(made) as worker:
        worker.mute = True
        stream = made.workers.open(WorkerId("w"), request(Role.DECODE), pytest.fail, pytest.fail)
        await until(lambda: worker.requests)
        stream.cancel()
        stream.cancel()
        assert made.said("sent", "ended") == [("sent", "w", "r", 0, 50), ("ended", "w", "r")]


async def test_a_watch_tells_the_loss_of_its_worker_once() -> None:
    async with shell() as made, one_worker(made) as worker:
        told: list[TokenmillError | None] = []
        made.workers.watch(WorkerId("w"), told.append)
        made.workers.watch(WorkerId("w"), pytest.fail).cancel()
        made.workers.watch(WorkerId("nobody"), told.append)
        await until(lambda: len(told) == 1)
        await worker.crash()
        await until(lambda: len(told) == 2)
    assert all(isinstance(error, WorkerLost) for error in told)


async def test_a_watch_keeps_a_worker_whose_card_is_gone_until_it_is_over() -> None:
    async with shell() as made, one_worker(made) as worker:
        watch = made.workers.watch(WorkerId("w"), pytest.fail)
        await made.registry.delete(worker.key)
        await until(lambda: made.said("gone"))
        (link,) = made.workers.links()
        assert link.connected
        watch.cancel()
        await until(lambda: not list(made.workers.links()))


# Caches ----------------------------------------------------------------------------------------------------


async def test_the_router_hears_a_snapshot_and_then_changes() -> None:
    async with shell() as made, one_worker(made) as worker:
        await until(lambda: made.router.kv)
        worker.tell_kv(stored(1, 2))
        await until(lambda: len(made.router.kv) == 2)
    assert made.router.kv == [KvEvents(0, [CacheCleared()]), KvEvents(1, [stored(1, 2)])]


async def test_a_router_that_needs_no_caches_hears_of_none() -> None:
    async with shell(NotingRouter(wants_kv=False)) as made, one_worker(made) as worker:
        assert worker.kv_subscriptions == 0


async def test_a_gap_brings_a_new_snapshot() -> None:
    async with shell() as made, one_worker(made) as worker:
        await until(lambda: made.router.kv)
        worker.cache = [stored(1, 2, 3)]
        made.router.refuse = 1
        worker.tell_kv(stored(3), lost=2)
        await until(lambda: len(made.router.kv) == 3)
        assert made.router.kv[-1] == KvEvents(0, [CacheCleared(), stored(1, 2, 3)])
        (link,) = made.workers.links()
        assert (worker.kv_subscriptions, link.kv.resubscribed) == (2, 1)


async def test_a_stream_that_the_worker_ends_is_opened_again() -> None:
    async with shell() as made, one_worker(made) as worker:
        await until(lambda: made.router.kv)
        worker.end_kv()
        await until(lambda: worker.kv_subscriptions == 2)
        await until(lambda: len(made.router.kv) == 2)


async def test_a_snapshot_that_was_dropped_is_asked_for_again() -> None:
    class Forgetful(ScriptedWorker):
        def _subscribe_kv(self, stream) -> None:
            if self.kv_subscriptions:
                super()._subscribe_kv(stream)
            else:
                self.kv_subscriptions += 1
                stream.send(KvEvents(9, []))

    async with shell() as made:
        worker = Forgetful(made.registry, "w", lambda _request: [1])
        await worker.start()
        await until(lambda: made.router.kv)
        assert made.router.kv[0] == KvEvents(0, [CacheCleared()])
        await worker.stop()


async def test_a_worker_that_comes_back_is_asked_anew() -> None:
    async with shell() as made, one_worker(made) as worker:
        await until(lambda: made.router.kv)
        await worker.announce(WorkerState.DRAINING)
        await until(lambda: made.said("gone"))
        worker.tell_kv(stored(1))
        await worker.announce(WorkerState.READY)
        await until(lambda: worker.kv_subscriptions == 2)
        await until(lambda: len(made.router.kv) == 2)
    assert [batch.first for batch in made.router.kv] == [0, 0]
