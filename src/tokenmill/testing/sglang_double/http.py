"""A small HTTP server for the double: requests in, whole or streamed answers out, disconnects noticed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import msgspec

from tokenmill.testing.connections import Connections, Request, read_request


@dataclass(frozen=True)
class Reply:
    """What goes back: ``body``, or ``events``, the payloads of a server-sent stream."""

    status: int = 200
    body: bytes = b""
    kind: str = "application/json"
    events: AsyncIterator[bytes] | None = None


def json_reply(content: object, status: int = 200) -> Reply:
    """Return an answer that is JSON."""
    return Reply(status, msgspec.json.encode(content))


class HangUp(Exception):
    """Raised by a handler or its events: close the connection as a dying server would."""


Handler = Callable[[Request], Awaitable[Reply]]


class HttpServer(Connections):
    """Answers each request by ``handler``. A client that goes away cancels it."""

    def __init__(self, handler: Handler) -> None:
        super().__init__(self._serve_requests)
        self._handler = handler

    async def _serve_requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(HangUp):
            while await self._serve_one(reader, writer):
                pass

    async def _serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        request = await read_request(reader)
        answering = asyncio.ensure_future(self._answer(request, writer))
        gone = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                return False
            answering.result()
            return not gone.done()
        finally:
            for waited in (answering, gone):
                waited.cancel()
            await asyncio.gather(answering, gone, return_exceptions=True)

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        reply = await self._handler(request)
        head = f"HTTP/1.1 {reply.status} x\r\ncontent-type: {reply.kind}\r\n"
        if reply.events is None:
            writer.write(f"{head}content-length: {len(reply.body)}\r\n\r\n".encode() + reply.body)
            await writer.drain()
            return
        writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode())
        async with contextlib.aclosing(reply.events) as events:  # type: ignore[type-var]
            async for payload in events:
                event = b"data: " + payload + b"\n\n"
                writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()
