"""A plain HTTP client for tests: sees the bytes as they are."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def events(self) -> list:
        """Server-sent events, decoded; "[DONE]" as it is."""
        found = []
        for block in self.body.decode().split("\n\n"):
            if block:
                assert block.startswith("data: "), block
                data = block.removeprefix("data: ")
                found.append(data if data == "[DONE]" else json.loads(data))
        return found

    @property
    def text(self) -> str:
        """All streamed text of choice 0."""
        pieces = []
        for event in self.events:
            if event != "[DONE]" and "choices" in event:
                for choice in event["choices"]:
                    if choice["index"] == 0:
                        pieces.append(
                            choice["delta"].get("content", "") if "delta" in choice else choice["text"]
                        )
        return "".join(pieces)


def request_bytes(method: str, path: str, body: object = None, headers=()) -> bytes:
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "host: test", *(f"{name}: {value}" for name, value in headers)]
    if data or method == "POST":
        lines.append(f"content-length: {len(data)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(head[0].split()[1])
    headers = {}
    for line in head[1:]:
        if line:
            name, _, value = line.partition(": ")
            headers[name.lower()] = value
    if head_only or status in (100, 204):
        return Answer(status, headers, b"")
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, b"".join([chunk async for chunk in read_chunks(reader)]))
    if "content-length" in headers:
        return Answer(status, headers, await reader.readexactly(int(headers["content-length"])))
    return Answer(status, headers, await reader.read())


async def read_chunks(reader: asyncio.StreamReader):
    while size := int(await reader.readline(), 16):
        yield await reader.readexactly(size)
        assert await reader.readexactly(2) == b"\r\n"
    assert await reader.readline() == b"\r\n"


async def exchange(port: int, method: str, path: str, body: object = None, headers=()) -> Answer:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request_bytes(method, path, body, headers))
        async with asyncio.timeout(10):
            return await read_answer(reader, head_only=method == "HEAD")
    finally:
        writer.close()
        await writer.wait_closed()
