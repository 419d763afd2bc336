"""The worker set's shell, where the tests of whole requests do not reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tokenmill.clock import SystemClock
from tokenmill.decide.router.least_loaded import LeastLoaded
from tokenmill.decide.router.stages import StageRouter
from tokenmill.errors import ServiceError
from tokenmill.serve.fabric.registry import SYNCED, Change
from tokenmill.serve.frontend.workers import WorkerSet


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


async def test_a_watch_that_breaks_is_reported_once() -> None:
    registry, reasons = Breaking(), []
    router = StageRouter(LeastLoaded(seed=1))
    workers = WorkerSet(registry, router, SystemClock(), worker_wait_s=1, on_broken=reasons.append)
    await workers.start()
    assert reasons == []
    registry.broken.set()
    async with asyncio.timeout(5):
        while not reasons:
            await asyncio.sleep(0.01)
    await workers.close()
    assert len(reasons) == 1
    assert "registry" in reasons[0]


async def test_closing_is_no_breakage() -> None:
    reasons: list[str] = []
    router = StageRouter(LeastLoaded(seed=1))
    workers = WorkerSet(Breaking(), router, SystemClock(), worker_wait_s=1, on_broken=reasons.append)
    await workers.start()
    await workers.close()
    await asyncio.sleep(0)
    assert reasons == []
