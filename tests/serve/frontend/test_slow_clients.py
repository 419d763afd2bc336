"""Clients that do not read, on real sockets, while the simulated engine streams."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest
from tests.serve.frontend.http_client import exchange, request_bytes
from tests.waiting import until

from tokenmill.serve.fabric.registry import open_registry
from tokenmill.serve.frontend.http.server import HttpServer
from tokenmill.serve.frontend.wiring import frontend
from tokenmill.spec.process import FrontendConfig

pytestmark = pytest.mark.processes

CLIENTS = 16
TOKENS = 20_000
MIB = 1024 * 1024


@asynccontextmanager
async def sim_worker(folder: Path, registry: str) -> AsyncIterator[None]:
    parent_read, parent_write = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tokenmill", "worker", "--engine=sim", f"--registry={registry}"),
        *(f"--run-dir={folder}", f"--parent-fd={parent_read}", "--log-level=error"),
        *("--engine-arg=speedup=10", "--kv-blocks=100000", "--max-model-len=50000"),
        pass_fds=(parent_read,),
    )
    os.close(parent_read)
    try:
        yield
    finally:
        os.close(parent_write)
        await asyncio.wait_for(process.wait(), 20)


@pytest.fixture
async def make_front(tmp_path: Path) -> AsyncIterator:
    async with AsyncExitStack() as stack:

        async def make(**settings) -> HttpServer:
            address = f"file://{tmp_path / 'registry'}"
            registry = open_registry(address)
            await registry.start()
            stack.push_async_callback(registry.stop)
            config = FrontendConfig(port=0, worker_wait_s=60, run_dir=str(tmp_path / "front"), **settings)
            server = await stack.enter_async_context(frontend(config, registry))
            await stack.enter_async_context(sim_worker(tmp_path / "worker", address))
            return server

        yield make


def ask(max_tokens: int, **fields) -> bytes:
    body = {"prompt": "a", "max_tokens": max_tokens, "ignore_eos": True, **fields}
    return request_bytes("POST", "/v1/completions", body, [("content-type", "application/json")])


def deaf_client(port: int, request: bytes) -> socket.socket:
    """Sends and never reads; its kernel takes little, so that we feel it soon."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    client.sendall(request)
    return client


async def test_clients_that_do_not_read_are_paused_then_dropped_and_memory_stays(make_front):
    server = await make_front(write_timeout_s=3.0)
    metrics = server.handler._service.models.first.metrics
    warm = await exchange(server.port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 50})
    assert warm.status == 200
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    clients = [deaf_client(server.port, ask(TOKENS, stream=True, logprobs=5)) for _ in range(CLIENTS)]
    try:
        await until(lambda: metrics.in_flight == CLIENTS)
        connections = list(server._connections)
        await until(lambda: all(each._stalled_since is not None for each in connections))
        unsent_bytes = [each._transport.get_write_buffer_size() for each in connections]
        assert max(unsent_bytes) < MIB
        assert process.memory_info().rss - before_bytes < 64 * MIB
        served = await exchange(server.port, "POST", "/v1/completions", {"prompt": "a", "max_tokens": 50})
        assert served.status == 200
        await until(lambda: metrics.in_flight == 0)
        await until(lambda: server.connection_count == 0)
        assert metrics.generations["/v1/completions", "499"] == CLIENTS
        assert process.memory_info().rss - before_bytes < 64 * MIB
    finally:
        for client in clients:
            client.close()


async def test_a_client_that_reads_again_in_time_misses_nothing(make_front):
    server = await make_front()
    loop = asyncio.get_running_loop()
    client = deaf_client(server.port, ask(3000, stream=True, return_token_ids=True))
    try:
        client.setblocking(False)
        await until(lambda: any(each._stalled_since is not None for each in server._connections))
        received = b""
        async with asyncio.timeout(60):
            while not received.endswith(b"0\r\n\r\n"):
                received += await loop.sock_recv(client, 65536)
        assert received.count(b'"token_ids":[') >= 1
        assert b"[DONE]" in received
        assert server.handler._service.models.first.metrics.output_tokens == 3000
    finally:
        client.close()
