"""Clients that others wrote see what we mean: h11 and aiohttp."""

from __future__ import annotations

import asyncio
import gzip

import aiohttp
import h11
from tests.serve.frontend.http.test_server import Handler, connect, serve, until


class H11Client:
    """h11 judges our bytes by the standard: it raises on whatever breaks it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._state = h11.Connection(h11.CLIENT)

    def send(self, method: str, path: str, body: bytes = b"", headers=(), *, chunked: bool = False) -> None:
        framing = ("transfer-encoding", "chunked") if chunked else ("content-length", str(len(body)))
        request = h11.Request(method=method, target=path, headers=[("host", "h"), framing, *headers])
        data = self._state.send(request)
        for at in range(0, len(body), 7):
            data += self._state.send(h11.Data(data=body[at : at + 7]))
        self._writer.write(data + self._state.send(h11.EndOfMessage()))

    async def answer(self) -> tuple[h11.Response, bytes]:
        response, body = None, b""
        while True:
            event = self._state.next_event()
            if event is h11.NEED_DATA:
                self._state.receive_data(await self._reader.read(1000))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None
                return response, body

    def next_cycle(self) -> None:
        self._state.start_next_cycle()

    @property
    def must_close(self) -> bool:
        return self._state.our_state is h11.MUST_CLOSE


async def test_h11_agrees_with_every_kind_of_answer():
    handler = Handler()
    async with serve(handler, max_body_bytes=1000) as server, connect(server) as streams:
        client = H11Client(*streams)
        for method, path, body, chunked, expected in (
            ("GET", "/a", b"", False, (200, b"/a ")),
            ("POST", "/b", b"body" * 20, False, (200, b"/b " + b"body" * 20)),
            ("POST", "/c", b"body" * 20, True, (200, b"/c " + b"body" * 20)),
            ("HEAD", "/d", b"", False, (200, b"")),
            ("GET", "/nothing", b"", False, (204, b"")),
            ("GET", "/bug", b"", False, (500, b"internal error")),
            ("GET", "/inject", b"", False, (200, b"")),
            ("GET", "/large", b"", False, (200, b"x" * 200_000)),
        ):
            client.send(method, path, body, chunked=chunked)
            response, got = await client.answer()
            assert (response.status_code, got) == expected
            client.next_cycle()
        client.send("GET", "/stream")
        await until(lambda: handler.source.sink is not None)
        handler.source.sink.write(b" second")
        handler.source.sink.end()
        assert (await client.answer())[1] == b"first second"
        client.next_cycle()
        client.send("POST", "/e", b"x" * 2000)
        assert (await client.answer())[0].status_code == 413
        assert client.must_close


async def test_h11_agrees_with_the_word_to_go_on():
    async with serve(Handler()) as server, connect(server) as streams:
        client = H11Client(*streams)
        client.send("POST", "/e", b"body", [("expect", "100-continue")])
        response, body = await client.answer()
        assert (response.status_code, body) == (200, b"/e body")


async def chunks_of(data: bytes):
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


async def test_aiohttp_as_client():
    handler = Handler()
    async with serve(handler) as server, aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:

        async def ask(method: str, path: str, **options) -> tuple[int, bytes]:
            async with session.request(method, path, **options) as answer:
                return answer.status, await answer.read()

        assert await ask("GET", "/a") == (200, b"/a ")
        assert await ask("HEAD", "/a") == (200, b"")
        assert await ask("GET", "/nothing") == (204, b"")
        assert await ask("POST", "/b", data=b"x" * 300_000) == (200, b"/b " + b"x" * 300_000)
        assert await ask("POST", "/c", data=chunks_of(b"y" * 5000)) == (200, b"/c " + b"y" * 5000)
        assert await ask("POST", "/d", data=b"z" * 5000, expect100=True) == (200, b"/d " + b"z" * 5000)
        assert await ask("POST", "/e", data=b"z" * 5000, compress="gzip") == (200, b"/e " + b"z" * 5000)
        assert await ask("POST", "/f", data=b"z" * 5000, compress="deflate") == (200, b"/f " + b"z" * 5000)
        headers = {"content-encoding": "gzip"}
        assert await ask("POST", "/g", data=gzip.compress(b"g"), headers=headers) == (200, b"/g g")
        async with session.get("/stream") as answer:
            handler.source.sink.write(b" second")
            handler.source.sink.end()
            assert await answer.read() == b"first second"
        answers = await asyncio.gather(*(ask("POST", f"/{n}", data=b"x" * n) for n in range(50)))
        assert answers == [(200, b"/%d " % n + b"x" * n) for n in range(50)]
        assert {request.headers["host"] for request in handler.requests} == {f"127.0.0.1:{server.port}"}
