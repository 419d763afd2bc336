"""The HTTP server on a real socket with small handlers behind it."""

from __future__ import annotations

import asyncio
import gzip
import socket
from contextlib import asynccontextmanager, suppress

import pytest
from tests.serve.frontend.http_client import exchange, read_answer, request_bytes
from tests.waiting import until

from tokenmill.clock import SystemClock, VirtualClock
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
        if request.path == "/nothing":
            return Response(204)
        if request.path == "/large":
            return Response(200, b"x" * 200_000, "text/plain")
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
async def serve(handler, *, clock=None, tls=None, **limits):
    server = HttpServer(handler, error_response, limits=HttpLimits(**limits), clock=clock or SystemClock())
    await server.start("127.0.0.1", 0, tls=tls)
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


async def test_half_closed_clients_get_their_answers():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/wait") + request_bytes("GET", "/2"))
        writer.write_eof()
        await until(lambda: handler.requests)
        assert (await read_answer(reader)).status == 100  # whether the client still listens
        handler.release.set()
        first, second = await read_answer(reader), await read_answer(reader)
        assert (first.body, first.headers["connection"]) == (b"/wait ", "keep-alive")
        assert (second.body, second.headers["connection"]) == (b"/2 ", "close")
        assert await reader.read() == b""


async def test_a_half_closed_client_gets_its_whole_stream():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/stream"))
        await reader.readuntil(b"first\r\n")
        writer.write_eof()
        assert await reader.readuntil(b":\n\n\r\n") == b"3\r\n:\n\n\r\n"
        handler.source.sink.write(b"second")
        handler.source.sink.end()
        assert await reader.read() == b"6\r\nsecond\r\n0\r\n\r\n"
        assert handler.source.heard == []


async def test_half_a_request_is_dropped_with_its_sender():
    async with serve(Handler()) as server, connect(server) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost:")
        writer.write_eof()
        assert await reader.read() == b""


async def test_an_http_1_0_client_that_half_closes_is_served_without_interim_answers():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(b"GET /wait HTTP/1.0\r\n\r\n")
        writer.write_eof()
        await until(lambda: handler.requests)
        handler.release.set()
        assert (await read_answer(reader)).body == b"/wait "


async def test_a_reset_while_a_request_is_served_cancels_it():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (_, writer):
        writer.write(request_bytes("GET", "/wait"))
        await until(lambda: handler.requests)
        writer.transport.abort()
        await until(lambda: handler.cancelled == 1)


async def test_pipelined_requests_of_a_client_that_does_not_read_wait():
    handler = Handler()
    async with serve(handler, max_pipelined=4) as server, connect(server) as (reader, writer):
        reader._transport.pause_reading()
        writer.write(request_bytes("GET", "/large") * 2000)
        await until(lambda: any(each._stalled_since for each in server._connections))
        served = len(handler.requests)
        assert served < 300
        (connection,) = server._connections
        assert connection._transport.get_write_buffer_size() < 600_000
        assert len(handler.requests) == served
        reader._transport.resume_reading()
        for _ in range(2000):
            assert len((await read_answer(reader)).body) == 200_000


async def test_large_pipelined_bodies_stop_the_reading():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/wait") + request_bytes("POST", "/body", b"x" * 300_000) * 20)
        await until(lambda: server._connections and next(iter(server._connections))._queue)
        (connection,) = server._connections
        await until(lambda: not connection._reading)
        assert connection.buffered_bytes < 1_500_000
        handler.release.set()
        assert (await read_answer(reader)).status == 200
        for _ in range(20):
            assert len((await read_answer(reader)).body) == len("/body ") + 300_000
        assert connection.buffered_bytes == 0


async def test_a_pipelined_request_waits_for_a_long_stream_and_its_time_begins_after_it():
    handler, clock = Handler(), VirtualClock()
    async with serve(handler, clock=clock) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/stream") + request_bytes("GET", "/2") + b"GET /3 HTTP/1.1\r\n")
        await reader.readuntil(b"first\r\n")
        (connection,) = server._connections
        clock.advance_to(500)
        connection.check(clock.now())
        handler.source.sink.end()
        await reader.readuntil(b"0\r\n\r\n")
        assert (await read_answer(reader)).body == b"/2 "
        clock.advance_to(510)
        connection.check(clock.now())
        writer.write(b"Host: h\r\n")
        clock.advance_to(521)
        connection.check(clock.now())
        assert (await read_answer(reader)).status == 408


async def test_a_slow_head_is_timed_out_though_bytes_keep_coming():
    async with serve(Handler(), header_timeout_s=0.2) as server, connect(server) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n")
        answer = asyncio.create_task(read_answer(reader))
        while not answer.done():
            writer.write(b"a: b\r\n")
            await asyncio.sleep(0.02)
        assert (await answer).status == 408


async def test_a_slow_body_is_timed_out_though_bytes_keep_coming():
    async with (
        serve(Handler(), header_timeout_s=30, read_timeout_s=0.2) as server,
        connect(server) as (
            reader,
            writer,
        ),
    ):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        answer = asyncio.create_task(read_answer(reader))
        while not answer.done():
            writer.write(b"1\r\nx\r\n")
            await asyncio.sleep(0.02)
        assert (await answer).status == 408


async def test_who_is_turned_away_can_read_why_and_leaves_nothing():
    async with serve(Handler(), max_connections=1) as server, connect(server):
        await until(lambda: server.connection_count == 1)
        for _ in range(20):
            async with connect(server) as (reader, writer):
                writer.write(request_bytes("POST", "/", b"x" * 10_000))
                answer = await read_answer(reader)
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert await reader.read() == b""
        await until(lambda: not server._turned_away)


async def test_arriving_bodies_are_bounded_together():
    handler = Handler()
    async with (
        serve(handler, max_buffered_bytes=100_000, idle_timeout_s=1) as server,
        connect(server) as (small_reader, small),
        connect(server) as (large_reader, large),
    ):
        small.write(b"POST /small HTTP/1.1\r\nHost: h\r\nContent-Length: 30001\r\n\r\n" + b"x" * 30_000)
        large.write(b"POST /large HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n" + b"x" * 90_000)
        answer = await read_answer(large_reader)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        small.write(b"x")
        assert (await read_answer(small_reader)).status == 200


async def test_a_drain_refuses_what_is_still_arriving():
    async with serve(Handler()) as server, connect(server) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nabc")
        await until(lambda: any(each._parser.in_message for each in server._connections))
        closing = asyncio.create_task(server.close(5.0))
        answer = await read_answer(reader)
        assert (answer.status, answer.headers["connection"]) == (503, "close")
        writer.close()
        await closing


async def test_a_drain_lets_a_stream_end_and_answers_nothing_after_it():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("GET", "/stream") + request_bytes("GET", "/after"))
        await reader.readuntil(b"first\r\n")
        closing = asyncio.create_task(server.close(5.0))
        await until(lambda: server.draining)
        handler.source.sink.write(b"second")
        handler.source.sink.end()
        assert await reader.read() == b"6\r\nsecond\r\n0\r\n\r\n"
        await closing
        assert [request.path for request in handler.requests] == ["/stream"]


async def test_a_client_that_leaves_the_last_bytes_unread_is_dropped():
    async with (
        serve(Handler(), write_timeout_s=0.2, write_high_bytes=1 << 20) as server,
        connect(server) as (
            reader,
            writer,
        ),
    ):
        reader._transport.pause_reading()
        for _ in range(100):  # more than the kernel takes, less than pauses writing
            writer.write(request_bytes("GET", "/large"))
        writer.write(request_bytes("GET", "/large", headers=[("connection", "close")]))
        await until(lambda: server.connection_count == 0)


async def test_head_of_a_stream_has_no_body():
    handler = Handler()
    async with serve(handler) as server, connect(server) as (reader, writer):
        writer.write(request_bytes("HEAD", "/stream") + request_bytes("GET", "/after"))
        assert (await read_answer(reader, head_only=True)).status == 200
        assert (await read_answer(reader)).body == b"/after "
        assert handler.source.heard == ["gone"]


async def test_compressed_bodies():
    async with serve(Handler(), max_body_bytes=100_000) as server:
        coding = [("content-encoding", "gzip")]
        answer = await exchange(server.port, "POST", "/", gzip.compress(b"body" * 1000), coding)
        assert answer.body == b"/ " + b"body" * 1000
        bomb = gzip.compress(b"\0" * 50_000_000)
        assert len(bomb) < 100_000
        assert (await exchange(server.port, "POST", "/", bomb, coding)).status == 413
        answer = await exchange(server.port, "POST", "/", b"x", [("content-encoding", "br")])
        assert (answer.status, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


async def test_nothing_waits_for_a_full_packet():
    async with serve(Handler()) as server, connect(server):
        await until(lambda: server.connection_count == 1)
        (connection,) = server._connections
        raw = connection._transport.get_extra_info("socket")
        assert raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="the system shares no ports")
async def test_servers_can_share_a_port():
    servers = [HttpServer(Handler(), error_response, limits=HttpLimits(), clock=SystemClock()) for _ in "ab"]
    try:
        await servers[0].start("127.0.0.1", 0, reuse_port=True)
        await servers[1].start("127.0.0.1", servers[0].port, reuse_port=True)
        for _ in range(10):
            assert (await exchange(servers[0].port, "GET", "/")).status == 200
    finally:
        for server in servers:
            await server.close()
