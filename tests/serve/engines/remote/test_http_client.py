"""The HTTP client against real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ConfigError, TokenmillError, WorkerFailed, WorkerLost
from tokenmill.serve.engines.remote.http_client import EventStream, HttpClient

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server(serve: Serve) -> AsyncIterator[HttpClient]:
    tasks: list[asyncio.Task[None] | None] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}/base", api_key="k")
    try:
        yield client
    finally:
        await client.close()
        listening.close()
        await asyncio.gather(*(task for task in tasks if task is not None))
        await listening.wait_closed()


async def read_request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(
        (int(line[16:]) for line in head.lower().split("\r\n") if line.startswith("content-length:")), 0
    )
    return head, await reader.readexactly(length)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.status = 0
        self.pieces: list[bytes] = []
        self.end: asyncio.Future[TokenmillError | None] = asyncio.get_running_loop().create_future()
        self.came = asyncio.Event()

    def began(self, status: int) -> None:
        self.status = status

    def data(self, piece: bytes) -> None:
        self.pieces.append(piece)
        self.came.set()

    def ended(self, error: TokenmillError | None) -> None:
        self.end.set_result(error)

    async def ending(self) -> TokenmillError | None:
        async with asyncio.timeout(10):
            return await self.end


async def test_requests_share_a_connection() -> None:
    heads: list[str] = []
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            head, body = await read_request(reader)
            heads.append(head)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with server(serve) as client:
        for body in (b'{"a":1}', b'{"b":2}'):
            reply = await client.request("POST", "/echo", body=body, timeout_s=10)
            assert (reply.status, reply.body) == (200, body)
        assert (await client.request("GET", "/x", timeout_s=10)).body == b""
    assert connections == 1
    assert heads[0].startswith("POST /base/echo HTTP/1.1\r\nhost: 127.0.0.1:")
    assert "authorization: Bearer k\r\n" in heads[0]
    assert heads[2].startswith("GET /base/x ")


async def test_pieces_come_as_they_are_sent() -> None:
    more = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await more.wait()
        writer.write(b"3\r\ntwo\r\n0\r\n\r\n")

    async with server(serve) as client:
        heard = Heard()
        client.send("POST", "/", heard)
        async with asyncio.timeout(10):
            await heard.came.wait()
        assert heard.pieces == [b"one"]
        more.set()
        assert await heard.ending() is None
        assert heard.pieces == [b"one", b"two"]


async def test_cancelling_closes_the_connection() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n")
        await reader.read()
        gone.set()

    async with server(serve) as client:
        heard = Heard()
        call = client.send("POST", "/", heard)
        async with asyncio.timeout(10):
            await heard.came.wait()
            call.cancel()
            await gone.wait()
        assert not heard.end.done()


async def test_a_broken_answer_is_told_once() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nbroken off")

    async with server(serve) as client:
        heard = Heard()
        client.send("POST", "/", heard)
        assert isinstance(await heard.ending(), WorkerLost)
        assert heard.pieces == [b"broken off"]


@pytest.mark.parametrize("answer", [b"no http at all\r\n\r\n", b""])
async def test_what_is_no_answer(answer: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)

    async with server(serve) as client:
        with pytest.raises(WorkerLost):
            await client.request("GET", "/", timeout_s=10)


async def test_a_kept_connection_that_was_closed_meanwhile_is_replaced() -> None:
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        await read_request(reader)
        answered += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        if answered == 1:
            await read_request(reader)  # and closes without an answer

    async with server(serve) as client:
        for _ in range(2):
            assert (await client.request("GET", "/", timeout_s=10)).body == b"ok"
    assert answered == 2


async def test_nobody_listens() -> None:
    async with server(lambda _reader, _writer: asyncio.sleep(0)) as client:
        address = client.base_url
    client = HttpClient(address)
    try:
        with pytest.raises(WorkerLost, match="cannot connect"):
            await client.request("GET", "/", timeout_s=10)
    finally:
        await client.close()


async def test_silence_has_an_end() -> None:
    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with server(serve) as client:
        with pytest.raises(WorkerLost, match="has not answered"):
            await client.request("GET", "/", timeout_s=0.05)


async def test_closing_ends_what_is_under_way() -> None:
    async def serve(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    heard: Heard
    async with server(serve) as client:
        heard = Heard()
        client.send("POST", "/", heard)
        await asyncio.sleep(0)
    assert isinstance(await heard.ending(), WorkerLost)


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8000", "http://", "http://h:99999"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpClient(url)
    assert caught.value.param == "attach"


EVENTS = b'data: {"a": 1}\n\n: comment\n\nevent: x\ndata: two\ndata: lines\n\ndata:[DONE]\n\nrest'


@given(cuts=st.lists(st.integers(0, len(EVENTS)), max_size=8), crlf=st.booleans())
def test_any_split_of_an_event_stream_reads_the_same(cuts: list[int], crlf: bool) -> None:
    stream = EventStream()
    data = EVENTS.replace(b"\n", b"\r\n") if crlf else EVENTS
    edges = [0, *sorted(cuts), len(data)]
    payloads = [payload for start, end in pairwise(edges) for payload in stream.feed(data[start:end])]
    assert payloads == [b'{"a": 1}', b"two\nlines", b"[DONE]"]


def test_an_event_without_end() -> None:
    stream = EventStream(limit=100)
    with pytest.raises(WorkerFailed):
        stream.feed(b"data: " + bytes(200))
