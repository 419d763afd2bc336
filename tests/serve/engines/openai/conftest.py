"""A small real server of OpenAI's API, scripted, and an engine attached to it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tokenmill.clock import SystemClock
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Item
from tokenmill.protocol.text import TextFinished, TextPieces, TextRequest
from tokenmill.serve.engines.base import EngineInfo, EngineOutput
from tokenmill.serve.engines.openai.engine import OpenAiArguments, OpenAiEngine, OpenAiOptions

DONE = "[DONE]"


def delta(text: str, reason: str | None = None, index: int = 0) -> dict:
    return {"choices": [{"index": index, "delta": {"content": text}, "finish_reason": reason}]}


USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 2,
    "total_tokens": 9,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
HELLO = [delta("Hel"), delta("lo", "stop"), {"choices": [], "usage": USAGE}, DONE]


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: dict


@dataclass
class Server:
    """``models``: what it lists, None for 404. ``events``: of a streamed answer; ``answer``: of a whole one;
    ``status``: other than 200 with ``answer`` as the body. ``gate``: is waited for before each answer's last
    event. ``cut``: the connection breaks there."""

    models: list[dict] | None = field(default_factory=lambda: [{"id": "m"}])
    events: list = field(default_factory=lambda: list(HELLO))
    answer: object = None
    status: int = 200
    gate: asyncio.Event | None = None
    cut: bool = False
    mute: bool = False
    asked: list[Asked] = field(default_factory=list)
    gone: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            asked = await self._read(reader)
            self.asked.append(asked)
            if asked.path.endswith("/models"):
                self._whole(writer, 200 if self.models is not None else 404, {"data": self.models})
            elif self.mute:
                await reader.read()
                self.gone += 1
                return
            elif self.status != 200 or not asked.body.get("stream"):
                self._whole(writer, self.status, self.answer)
            else:
                await self._stream(reader, writer)
                if self.cut:
                    return

    async def _stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for index, event in enumerate(self.events):
            if self.gate is not None and index == len(self.events) - 1:
                await self._wait(reader, self.gate)
            data = f"data: {event if event == DONE else json.dumps(event)}\n\n".encode()
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))
            await writer.drain()
        if not self.cut:
            writer.write(b"0\r\n\r\n")

    async def _wait(self, reader: asyncio.StreamReader, gate: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(gate.wait())
        left = asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((waiting, left), return_when=asyncio.FIRST_COMPLETED)
            if left.done() and not left.result():
                self.gone += 1
                raise ConnectionError
        finally:
            for task in (waiting, left):
                task.cancel()
            await asyncio.gather(waiting, left, return_exceptions=True)

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> Asked:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        method, path, _ = head[0].split()
        headers = dict(line.split(": ", 1) for line in head[1:] if line)
        length = int(headers.get("content-length", 0))
        body = json.loads(await reader.readexactly(length)) if length else {}
        return Asked(method, path, headers, body)

    @staticmethod
    def _whole(writer: asyncio.StreamWriter, status: int, body: object) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(data)}\r\n\r\n".encode() + data)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    tasks: set[asyncio.Task] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        try:
            await server.serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(connected, "127.0.0.1", server.port)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await listening.wait_closed()


class Client:
    """Submits requests to an engine and keeps what it says."""

    def __init__(self, engine: OpenAiEngine) -> None:
        self.engine = engine
        self.info: EngineInfo
        self.items: dict[str, list[Item]] = {}
        self._changed = asyncio.Event()

    def took(self, output: EngineOutput) -> None:
        for request_id, item in output.items:
            assert not self.ended(request_id), f"{item} came after the end"
            self.items[request_id].append(item)
        self._changed.set()

    def send(self, name: str, *, model: str = "", stream: bool = True, **fields: object) -> None:
        self.items[name] = []
        body = json.dumps({"messages": [], **fields}).encode()
        text = TextRequest(path="chat/completions", fields=body, model=model, stream=stream, tokens=3)
        request = GenerateRequest(
            request_id=RequestId(name), prompt=[], sampling=Sampling(max_tokens=0), text=text
        )
        self.engine.submit(request)

    def ended(self, name: str) -> bool:
        return bool(self.items[name]) and isinstance(self.items[name][-1], TextFinished | Failed)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._changed.clear()
                await asyncio.wait((asyncio.ensure_future(self._changed.wait()),), timeout=0.02)

    async def end_of(self, name: str) -> TextFinished | Failed:
        await self.until(lambda: self.ended(name))
        end = self.items[name][-1]
        assert isinstance(end, TextFinished | Failed)
        return end

    async def ask(self, name: str = "r", **how: object) -> TextFinished | Failed:
        self.send(name, **how)
        return await self.end_of(name)

    def text(self, name: str) -> str:
        pieces = [
            piece
            for item in self.items[name]
            if isinstance(item, TextPieces | TextFinished)
            for piece in item.pieces
        ]
        return "".join(choice["delta"]["content"] for piece in pieces for choice in json.loads(piece))


@asynccontextmanager
async def attached(server: Server, *, path: str = "", **options: object) -> AsyncIterator[Client]:
    arguments = options.pop("arguments", OpenAiArguments(start_timeout_s=0.1))
    engine = OpenAiEngine(
        OpenAiOptions(attach=server.url + path, arguments=arguments, **{"model_name": "m", **options}),
        SystemClock(),
    )
    client = Client(engine)
    client.info = await engine.start(client.took)
    try:
        yield client
    finally:
        await engine.stop()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving(Server()) as made:
        yield made
