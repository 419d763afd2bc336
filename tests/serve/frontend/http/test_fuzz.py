"""Hostile bytes on a real socket: always an answer or a close, and the next client is served."""

from __future__ import annotations

import asyncio
import random

import pytest
from tests.serve.frontend.http.corpus import BAD, CLOSING, GOOD, head
from tests.serve.frontend.http.test_server import Handler, connect, serve, until
from tests.serve.frontend.http_client import exchange, read_answer, request_bytes

LIMITS = {"max_head_bytes": 700, "max_body_bytes": 1000, "header_timeout_s": 0.5, "read_timeout_s": 0.5}
DEADLINE_S = 20.0


async def talk(port: int, pieces: list[bytes], pause_s: float = 0.0) -> bytes:
    """Send, close the sending side, and return all that comes; fails when no end comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(DEADLINE_S):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause_s)
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("name", BAD)
async def test_bad_requests_are_answered_and_the_connection_closed(name):
    data, status = BAD[name]
    handler = Handler()
    async with serve(handler, max_body_bytes=1000) as server, connect(server) as (reader, writer):
        writer.write(data + head(b"GET /smuggled HTTP/1.1"))
        answer = await read_answer(reader)
        while answer.status == 100:
            answer = await read_answer(reader)
        assert answer.status == status
        assert answer.headers["connection"] == "close"
        assert await reader.read() == b""
        assert handler.requests == []


async def test_good_requests_are_served_in_order_whatever_the_packets():
    rng = random.Random(1)
    whole = b"".join(data for data, *_ in GOOD.values())
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        at = 0
        while at < len(whole):
            size = rng.choice((1, 2, 3, 50, 500))
            writer.write(whole[at : at + size])
            await writer.drain()
            await asyncio.sleep(0)
            at += size
        for _, method, path, body in GOOD.values():
            answer = await read_answer(reader, head_only=method == "HEAD")
            assert answer.body == path.encode() + b" " + body


async def test_damaged_requests_end_and_leave_nothing_behind():
    rng = random.Random(2)
    messages = (
        [data for data, *_ in GOOD.values()] + list(CLOSING.values()) + [data for data, _ in BAD.values()]
    )
    handler = Handler()
    async with serve(handler, idle_timeout_s=0.5, **LIMITS) as server:

        async def one() -> None:
            data = bytearray(b"".join(rng.choices(messages, k=rng.randrange(1, 4))))
            for _ in range(rng.randrange(6)):
                at = rng.randrange(len(data))
                data[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            cut = rng.randrange(len(data) + 1)
            received = await talk(server.port, [bytes(data[:cut]), bytes(data[cut:])])
            assert not received or received.startswith(b"HTTP/1.1 ")

        for _ in range(20):
            await asyncio.gather(*(one() for _ in range(20)))
            assert (await exchange(server.port, "GET", "/alive")).status == 200
        await until(lambda: server.connection_count == 0)
    assert all(request.method for request in handler.requests)


async def test_random_bytes_end_and_leave_nothing_behind():
    rng = random.Random(3)
    async with serve(Handler(), idle_timeout_s=0.5, **LIMITS) as server:
        for _ in range(10):
            await asyncio.gather(
                *(talk(server.port, [rng.randbytes(rng.randrange(1, 3000))]) for _ in range(20))
            )
            assert (await exchange(server.port, "GET", "/alive")).status == 200
        await until(lambda: server.connection_count == 0)


async def test_clients_that_vanish_at_any_point_leave_nothing_behind():
    rng = random.Random(4)
    handler = Handler()
    handler.release.set()
    whole = (
        request_bytes("GET", "/wait")
        + request_bytes("POST", "/b", b"x" * 500)
        + request_bytes("GET", "/large")
    )
    async with serve(handler) as server:
        for _ in range(100):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(whole[: rng.randrange(len(whole) + 1)])
            await asyncio.sleep(rng.choice((0, 0.001, 0.005)))
            writer.transport.abort()
        assert (await exchange(server.port, "GET", "/alive")).status == 200
        await until(lambda: server.connection_count == 0)
