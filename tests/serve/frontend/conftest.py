"""A frontend on a loopback port with scripted workers behind it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import Role
from tokenmill.serve.fabric.registry import Registry, open_registry
from tokenmill.serve.frontend.http.server import HttpServer
from tokenmill.serve.frontend.wiring import frontend
from tokenmill.spec.process import FrontendConfig
from tokenmill.testing.scripted_worker import ScriptedWorker
from tokenmill.testing.tiny_tokenizer import EOS_ID, write_tiny_tokenizer

from .http_client import Answer, exchange

REPLY = "Hello, wörld!"


def reply(text: str, *, eos: bool = True) -> Callable[[GenerateRequest], list[int]]:
    tokens = [*text.encode(), *([EOS_ID] if eos else [])]
    return lambda request: tokens


@dataclass
class Plant:
    registry: Registry
    server: HttpServer
    stack: AsyncExitStack
    workers: list[ScriptedWorker] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.server.port

    async def worker(self, name: str, script=None, **options) -> ScriptedWorker:
        worker = ScriptedWorker(self.registry, name, script or reply(REPLY), **options)
        self.stack.push_async_callback(worker.stop)
        await worker.start()
        self.workers.append(worker)
        await self.until(lambda: self.knows(name))
        return worker

    def knows(self, name: str) -> bool:
        service = self.server.handler._service
        return any(
            link.card.worker_id == name and link.usable for link in service.models.first.workers.links()
        )

    async def until(self, condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)

    async def ask(self, method: str, path: str, body: object = None, headers=()) -> Answer:
        return await exchange(self.port, method, path, body, headers)

    async def post(self, path: str, body: object, headers=()) -> Answer:
        return await self.ask("POST", path, body, headers)

    async def chat(self, **fields) -> Answer:
        body = {"messages": [{"role": "user", "content": "hi"}], **fields}
        return await self.post("/v1/chat/completions", body)

    async def complete(self, **fields) -> Answer:
        return await self.post("/v1/completions", {"prompt": "abc", "max_tokens": 64, **fields})


def pytest_asyncio_loop_factories(config, item):
    """The loop that the frontend runs on."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_tiny_tokenizer(tmp_path / "tiny")


@pytest.fixture
def make_plant(model_folder: Path):
    @asynccontextmanager
    async def make(**settings) -> AsyncIterator[Plant]:
        registry = open_registry("memory:")
        await registry.start()
        usual = {"model": str(model_folder), "port": 0, "worker_wait_s": 0.3, "router_prefill": "remote"}
        config = FrontendConfig(**{**usual, **settings})
        async with AsyncExitStack() as stack:
            stack.push_async_callback(registry.stop)
            server = await stack.enter_async_context(frontend(config, registry))
            yield Plant(registry, server, stack)

    return make


@pytest.fixture
async def plant(make_plant) -> AsyncIterator[Plant]:
    async with make_plant() as made:
        yield made


@pytest.fixture
async def aggregated(plant: Plant) -> Plant:
    await plant.worker("b1")
    return plant


@pytest.fixture
async def disaggregated(plant: Plant) -> Plant:
    await plant.worker("p1", role=Role.PREFILL)
    await plant.worker("d1", role=Role.DECODE)
    return plant
