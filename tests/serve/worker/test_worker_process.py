"""A real worker process with the simulated engine: announce, serve, drain, die."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.calls import Call, Generate, Subscribe, SubscribeKv
from tokenmill.protocol.card import WORKERS_PREFIX, WorkerCard, WorkerState
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, FinishReason, Item, Load, Offered, Tokens
from tokenmill.protocol.kv_events import BlocksStored, CacheCleared, KvEvents
from tokenmill.serve.fabric.registry import open_registry
from tokenmill.serve.fabric.streams import StreamConnection

pytestmark = pytest.mark.processes


class Worker:
    def __init__(self, process: asyncio.subprocess.Process, ready: dict, parent: int, registry: str) -> None:
        self.process = process
        self.ready = ready
        self.parent = parent
        self.registry = registry

    async def ended(self) -> int:
        return await asyncio.wait_for(self.process.wait(), 20)


@asynccontextmanager
async def running(tmp_path: Path, *flags: str) -> AsyncIterator[Worker]:
    ready_read, ready_write = os.pipe()
    parent_read, parent_write = os.pipe()
    registry = f"file://{tmp_path / 'registry'}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenmill", "worker", "--engine=sim", f"--registry={registry}"),
        *(f"--run-dir={tmp_path / 'run'}", f"--ready-fd={ready_write}", f"--parent-fd={parent_read}"),
        *("--registry-ttl-s=2", "--log-level=error", *flags),
        pass_fds=(ready_write, parent_read),
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(ready_write)
    os.close(parent_read)
    worker = Worker(process, {}, parent_write, registry)
    try:
        with os.fdopen(ready_read) as pipe:
            worker.ready = json.loads(await asyncio.wait_for(asyncio.to_thread(pipe.readline), 30))
        yield worker
    finally:
        os.close(worker.parent)
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[StreamConnection[Call, Item]]:
    connection = await StreamConnection[Call, Item].connect(address, Call, Item)
    try:
        yield connection
    finally:
        await connection.close()


class Reader:
    def __init__(self, connection: StreamConnection[Call, Item], call: Call) -> None:
        self.items: list[Item] = []
        self.changed = asyncio.Event()
        self.ended = asyncio.Event()
        self.error: Exception | None = None
        self.stream = connection.open(call, self._item, self._end)

    def _item(self, item: Item) -> None:
        self.items.append(item)
        self.changed.set()

    def _end(self, error: Exception | None) -> None:
        self.error = error
        self.ended.set()

    async def until(self, kind: type) -> Item:
        async with asyncio.timeout(20):
            while True:
                for item in self.items:
                    if isinstance(item, kind):
                        return item
                self.changed.clear()
                await self.changed.wait()

    async def end(self) -> Item:
        await asyncio.wait_for(self.ended.wait(), 20)
        return self.items[-1]


def generate(request_id: str, max_tokens: int, role: Role = Role.BOTH, prompt: int = 50) -> Generate:
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    ids = list(range(300, 300 + prompt))
    return Generate(
        GenerateRequest(request_id=RequestId(request_id), prompt=ids, sampling=sampling, role=role)
    )


async def cards(registry_url: str) -> list[WorkerCard]:
    registry = open_registry(registry_url)
    await registry.start()
    try:
        found = await registry.list(WORKERS_PREFIX)
    finally:
        await registry.stop()
    return [msgspec.json.decode(value, type=WorkerCard) for value in found.values()]


async def test_announces_itself_and_serves(tmp_path: Path) -> None:
    async with running(tmp_path, "--role=decode", "--stage=writers") as worker:
        assert worker.ready["ready"] is True
        (card,) = await cards(worker.registry)
        assert (card.role, card.stage, card.state) == (Role.DECODE, "writers", WorkerState.READY)
        assert card.pid == worker.process.pid
        assert card.address == worker.ready["address"]
        async with connected(card.address) as connection:
            reader = Reader(connection, generate("a", 5))
            end = await reader.end()
            assert isinstance(end, Finished)
            tokens = [t for item in reader.items if isinstance(item, Tokens | Finished) for t in item.tokens]
            assert len(tokens) == 5
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0
        assert await cards(worker.registry) == []


def stored(reader: Reader) -> set[int]:
    events = [event for item in reader.items if isinstance(item, KvEvents) for event in item.events]
    return {block for event in events if isinstance(event, BlocksStored) for block in event.hashes}


async def test_tells_what_it_caches_to_early_and_late_readers(tmp_path: Path) -> None:
    async with (
        running(tmp_path, "--block-tokens=16") as worker,
        connected(worker.ready["address"]) as connection,
    ):
        early = Reader(connection, SubscribeKv())
        first = await early.until(KvEvents)
        assert first == KvEvents(0, [CacheCleared()])
        await Reader(connection, generate("a", 2, prompt=40)).end()
        names = set(block_hashes(list(range(300, 340)), 16))
        assert len(names) == 2
        async with asyncio.timeout(20):
            while not names <= stored(early):
                early.changed.clear()
                await early.changed.wait()
        late = Reader(connection, SubscribeKv())
        snapshot = await late.until(KvEvents)
        assert isinstance(snapshot, KvEvents)
        assert (snapshot.first, snapshot.events[0]) == (0, CacheCleared())
        assert names <= stored(late)


async def test_the_load_is_told_soon_after_the_last_step(tmp_path: Path) -> None:
    async with running(tmp_path) as worker, connected(worker.ready["address"]) as connection:
        load = Reader(connection, Subscribe(interval_ms=1.0))
        await Reader(connection, generate("a", 40)).end()
        async with asyncio.timeout(20):
            while not any(i.metrics.decode_tokens_total >= 39 and not i.metrics.running for i in load.items):
                load.changed.clear()
                await load.changed.wait()


async def test_sigterm_finishes_what_it_has_and_refuses_new(tmp_path: Path) -> None:
    async with running(tmp_path) as worker, connected(worker.ready["address"]) as connection:
        load = Reader(connection, Subscribe())
        running_request = Reader(connection, generate("a", 400))
        await running_request.until(Tokens)
        worker.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while not any(isinstance(item, Load) and item.draining for item in load.items):
                load.changed.clear()
                await load.changed.wait()
        async with asyncio.timeout(10):  # the card is written after the load is told
            while [card.state for card in await cards(worker.registry)] != [WorkerState.DRAINING]:
                await asyncio.sleep(0.01)
        refused = await Reader(connection, generate("b", 5)).end()
        assert isinstance(refused, Failed)
        assert refused.retryable
        end = await running_request.end()
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.LENGTH
        assert await worker.ended() == 0


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as worker, connected(worker.ready["address"]) as connection:
        reader = Reader(connection, generate("a", 100_000))
        await reader.until(Tokens)
        worker.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        worker.process.send_signal(signal.SIGTERM)
        assert await worker.ended() == 0


async def test_exits_when_its_parent_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path) as worker:
        os.close(worker.parent)
        assert await worker.ended() == 0
        worker.parent = os.open(os.devnull, os.O_RDONLY)


async def test_a_killed_worker_leaves_the_registry(tmp_path: Path) -> None:
    async with running(tmp_path) as worker:
        worker.process.kill()
        await worker.ended()
        async with asyncio.timeout(10):
            while await cards(worker.registry):
                await asyncio.sleep(0.05)


async def test_a_frozen_worker_that_was_struck_off_announces_itself_again(tmp_path: Path) -> None:
    async with running(tmp_path) as worker:
        worker.process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(10):
                while await cards(worker.registry):
                    await asyncio.sleep(0.05)
        finally:
            worker.process.send_signal(signal.SIGCONT)
        async with asyncio.timeout(10):
            while not await cards(worker.registry):
                await asyncio.sleep(0.05)
        (card,) = await cards(worker.registry)
        assert (card.state, card.address) == (WorkerState.READY, worker.ready["address"])
        async with connected(card.address) as connection:
            assert isinstance(await Reader(connection, generate("a", 5)).end(), Finished)


async def test_a_registry_that_is_gone_does_not_cut_a_drain_short(tmp_path: Path) -> None:
    async with running(tmp_path) as worker, connected(worker.ready["address"]) as connection:
        request = Reader(connection, generate("a", 100))
        await request.until(Tokens)
        shutil.rmtree(tmp_path / "registry")
        (tmp_path / "registry").write_text("not a folder")
        worker.process.send_signal(signal.SIGTERM)
        end = await request.end()
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.LENGTH
        assert await worker.ended() == 0


async def test_an_unread_export_comes_back_after_its_lease(tmp_path: Path) -> None:
    async with (
        running(tmp_path, "--role=prefill", "--lease-s=0.5") as worker,
        connected(worker.ready["address"]) as connection,
    ):
        load = Reader(connection, Subscribe(interval_ms=0))
        reader = Reader(connection, generate("a", 5, Role.PREFILL))
        await reader.until(Offered)
        end = await reader.end()
        assert isinstance(end, Finished)
        assert end.reason is FinishReason.HANDOFF
        async with asyncio.timeout(10):
            while True:
                last = [item for item in load.items if isinstance(item, Load)][-1].metrics
                if last.handoffs_out_total and not last.exported + last.kv_blocks_used:
                    break
                load.changed.clear()
                await load.changed.wait()


async def test_a_lost_client_cancels_its_requests(tmp_path: Path) -> None:
    async with running(tmp_path) as worker, connected(worker.ready["address"]) as watching:
        load = Reader(watching, Subscribe(interval_ms=0))
        async with connected(worker.ready["address"]) as connection:
            await Reader(connection, generate("a", 100_000)).until(Tokens)
        async with asyncio.timeout(10):
            while [item for item in load.items if isinstance(item, Load)][-1].metrics.running:
                load.changed.clear()
                await load.changed.wait()


@pytest.mark.parametrize(
    ("flag", "part"),
    [
        ("--model=/no/such/folder", "/no/such/folder"),
        ("--engine-arg=speed=2", "speed"),
        ("--transports=pigeon", "pigeon"),
    ],
)
async def test_a_bad_setting_is_named_and_not_retried(tmp_path: Path, flag: str, part: str) -> None:
    async with running(tmp_path, flag) as worker:
        assert worker.ready["ready"] is False
        assert worker.ready["fatal"] is True
        assert part in worker.ready["error"]
        assert await worker.ended() == 2
