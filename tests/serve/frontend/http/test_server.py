"""The HTTP server on a real socket with small handlers behind it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress

import pytest
from tests.serve.frontend.http_client import exchange, read_answer, request_bytes

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.messages import HttpLimits, Request, Response, Stream
from tokenmill.serve.frontend.http.server import HttpServer


class Source:
    """A stream that is written by hand."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.sink = None
        self.heard: list[str] = []

    def attach(self, sink):
        self.sink = sink
        if self.first:
            sink.write(self.first)

    def pause(self):
        self.heard.append("pause")

    def resume(self):
        self.heard.append("resume")

    def gone(self):
        self.heard.append("gone")


class Handler:
    def __init__(self) -> None:
        self.cancelled = 0
        self.requests: list[Request] = []
        self.release = asyncio.Event()
        self.source = Source(b"first")

    async def __call__(self, request: Request):
        self.requests.append(request)
        if request.path == "/wait":
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if request.path == "/bug":
            raise RuntimeError("secret")
        if request.path == "/stream":
            return Stream(self.source)
        if request.path == "/inject":
            return Response(200, b"", headers=(("x-a", "b\r\nx-evil: 1"),))
        return Response(200, request.path.encode() + b" " + request.body, "text/plain")


def error_response(status: int, message: str) -> Response:
    return Response(status, message.encode(), "text/plain")


@asynccontextmanager
async def serve(handler, **limits):
    server = HttpServer(handler, error_response, limits=HttpLimits(**limits), clock=SystemClock())
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.close()


@asynccontextmanager
async def connect(server):
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        async with asyncio.timeout(10):
            yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition):
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.002)


async def test_keep_alive_and_pipelining_in_order():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(
            request_bytes("GET", "/wait") + request_bytes("POST", "/2", b"body") + request_bytes("GET", "/3")
        )
        await until(lambda: len(handler.requests) == 1)
        handler.release.set()
        answers = [await read_answer(reader) for _ in range(3)]
        assert [answer.body for answer in answers] == [b"/wait ", b"/2 body", b"/3 "]
        writer.write(request_bytes("GET", "/4"))
        answer = await read_answer(reader)
        assert answer.headers["connection"] == "keep-alive"
        assert answer.headers["date"].endswith("GMT")


async def test_a_flood_of_pipelined_requests_is_answered_and_bounded():
    async with serve(Handler(), max_pipelined=2) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/x") * 500)
        for _ in range(500):
            assert (await read_answer(reader)).status == 200


async def test_a_stream_is_chunked_and_the_connection_kept():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/stream") + request_bytes("GET", "/after"))
        await until(lambda: handler.source.sink is not None)
        handler.source.sink.write(b" second")
        handler.source.sink.end()
        assert (await read_answer(reader)).body == b"first second"
        assert (await read_answer(reader)).body == b"/after "
        assert handler.source.heard == []


async def test_a_stream_to_http_1_0_ends_with_the_connection():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(b"GET /stream HTTP/1.0\r\n\r\n")
        await until(lambda: handler.source.sink is not None)
        handler.source.sink.end()
        answer = await read_answer(reader)
        assert "transfer-encoding" not in answer.headers
        assert answer.body == b"first"


async def test_a_client_that_leaves_cancels_the_handler():
    handler = Handler()
    async with serve(handler) as server:
        async with connect(server) as (_, writer):
            writer.write(request_bytes("GET", "/wait"))
            await until(lambda: handler.requests)
        await until(lambda: handler.cancelled == 1)
        await until(lambda: server.connection_count == 0)


async def test_a_client_that_leaves_ends_the_stream():
    handler = Handler()
    async with serve(handler) as server:
        async with connect(server) as (reader, writer):
            writer.write(request_bytes("GET", "/stream"))
            await reader.readuntil(b"first")
        await until(lambda: handler.source.heard == ["gone"])


async def test_a_slow_reader_pauses_the_stream_and_resumes_it():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/stream"))
        await reader.readuntil(b"first")
        for _ in range(400):
            handler.source.sink.write(b"x" * 50000)
        await until(lambda: handler.source.heard == ["pause"])
        while handler.source.heard != ["pause", "resume"]:
            assert await reader.read(1 << 20)


async def test_a_reader_that_does_not_read_is_dropped():
    handler = Handler()
    async with serve(handler, write_timeout_s=0.2) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/stream"))
        await reader.readuntil(b"first")
        for _ in range(400):
            handler.source.sink.write(b"x" * 50000)
        await until(lambda: handler.source.heard == ["pause", "gone"])


async def test_a_bug_shows_no_traceback_and_the_connection_lives():
    async with serve(Handler()) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/bug") + request_bytes("GET", "/ok"))
        answer = await read_answer(reader)
        assert (answer.status, answer.body) == (500, b"internal error")
        assert (await read_answer(reader)).status == 200


async def test_headers_cannot_be_injected():
    async with serve(Handler()) as server:
        answer = await exchange(server.port, "GET", "/inject")
        assert "x-evil" not in answer.headers


async def test_head_gets_the_length_and_no_body():
    async with serve(Handler()) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("HEAD", "/abc") + request_bytes("GET", "/def"))
        answer = await read_answer(reader, head_only=True)
        assert answer.headers["content-length"] == "5"
        assert (await read_answer(reader)).body == b"/def "


async def test_expect_continue():
    async with serve(Handler()) as server, connect(server) as (reader, writer):
        head, _, body = request_bytes("POST", "/e", b"body", [("expect", "100-continue")]).partition(
            b"\r\n\r\n"
        )
        writer.write(head + b"\r\n\r\n")
        assert (await read_answer(reader)).status == 100
        writer.write(body)
        assert (await read_answer(reader)).body == b"/e body"


async def test_too_large_a_body_is_refused_while_it_is_sent():
    async with serve(Handler(), max_body_bytes=1000) as server, connect(server) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 3000000)
        answer = await read_answer(reader)
        assert answer.status == 413
        assert answer.headers["connection"] == "close"
        assert await reader.read() == b""


async def test_an_error_is_answered_after_the_requests_before_it():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/wait") + b"rubbish\r\n\r\n")
        await until(lambda: handler.requests)
        handler.release.set()
        assert (await read_answer(reader)).status == 200
        assert (await read_answer(reader)).status == 400
        assert await reader.read() == b""


async def test_a_request_that_does_not_arrive_is_timed_out():
    async with serve(Handler(), read_timeout_s=0.1) as server, connect(server) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
        assert (await read_answer(reader)).status == 408
        assert await reader.read() == b""


async def test_a_silent_connection_is_closed():
    async with serve(Handler(), idle_timeout_s=0.1) as server, connect(server) as (reader, _):
        assert await reader.read() == b""


async def test_one_connection_too_many_is_refused():
    async with serve(Handler(), max_connections=1) as server:
        async with connect(server):
            await until(lambda: server.connection_count == 1)
            async with connect(server) as (reader, _):
                assert (await read_answer(reader)).status == 503
        await until(lambda: server.connection_count == 0)
        assert (await exchange(server.port, "GET", "/")).status == 200


async def test_close_lets_running_requests_end_and_closes_idle_connections():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (idle, _), connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/wait"))
        await until(lambda: handler.requests)
        port = server.port
        closing = asyncio.create_task(server.close(5.0))
        assert await idle.read() == b""
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
        handler.release.set()
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        await closing


async def test_close_drops_what_does_not_end():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/wait"))
        await until(lambda: handler.requests)
        await server.close(0.05)
        assert handler.cancelled == 1
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await read_answer(reader)


async def test_a_taken_port_is_named():
    async with serve(Handler()) as server:
        other = HttpServer(Handler(), error_response, limits=HttpLimits(), clock=SystemClock())
        with pytest.raises(ConfigError, match=f"127.0.0.1:{server.port}"):
            await other.start("127.0.0.1", server.port)
        await other.close()
