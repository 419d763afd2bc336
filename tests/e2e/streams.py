"""Many streamed completions at once, seen token by token; and factories with settings of their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from tokenmill.testing.running_factory import RunningFactory


def start_factory(folder: Path, spec: dict[str, object]) -> RunningFactory:
    """Bring up what ``spec`` declares, on a free port."""
    frontend = {**spec.get("frontend", {}), "port": "PORT"}
    whole = {"apiVersion": "tokenmill/v1", "kind": "Factory", **spec, "frontend": frontend}
    return RunningFactory.up(folder, yaml.safe_dump(whole))


def wait_for_workers(factory: RunningFactory, **counts: int) -> None:
    """Wait until so many workers of each role are ready."""
    ready = partial(all_ready, factory, **counts)
    asyncio.run(until(ready, lambda: factory.get("/health")[1] + factory.log()))


def all_ready(factory: RunningFactory, **counts: int) -> bool:
    """Whether so many workers of each role are ready."""
    states = json.loads(factory.get("/health")[1])["workers"]
    return all(states[role].get("ready", 0) == count for role, count in counts.items())


async def until(
    condition: Callable[[], object], why_not: Callable[[], str] = str, timeout_s: float = 90
) -> None:
    """Wait for a condition; it is looked at in a thread, since it may ask the factory."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while not await asyncio.to_thread(condition):
        assert loop.time() < deadline, why_not()
        await asyncio.sleep(0.05)


class Client:
    """One streamed completion: what has come so far."""

    def __init__(self, factory: RunningFactory, body: dict[str, object], name: str) -> None:
        self.name = name
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.text = ""
        self.finish: str | None = None
        self.error: dict | None = None
        self.ended = False
        self._port = factory.port
        self._body = {"stream": True, "return_token_ids": True, **body}

    @property
    def result(self) -> tuple:
        return self.error, self.finish, self.tokens, self.text, self.logprobs

    async def run(self) -> None:
        """Send the request and take its stream until the end."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            body = json.dumps(self._body).encode()
            head = (
                f"POST /v1/completions HTTP/1.1\r\nhost: test\r\nx-request-id: {self.name}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            status = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
            if status != b"200":
                self.error = {"status": int(status)}
                return
            await self._take(reader)
        finally:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        rest = b""
        while size := int(await reader.readline(), 16):
            rest += await reader.readexactly(size)
            await reader.readexactly(2)
            *events, rest = rest.split(b"\n\n")
            for event in events:
                self._event(event.removeprefix(b"data: "))
        assert rest == b""

    def _event(self, data: bytes) -> None:
        assert not self.ended, "something follows the end"
        if data == b"[DONE]":
            self.ended = True
            return
        event = json.loads(data)
        if "error" in event:
            self.error = event["error"]
            self.ended = True
            return
        for choice in event["choices"]:
            self.tokens += choice.get("token_ids") or []
            self.text += choice["text"]
            if choice.get("logprobs"):
                self.logprobs += choice["logprobs"]["token_logprobs"]
            self.finish = choice["finish_reason"] or self.finish


async def run_all(
    factory: RunningFactory,
    bodies: Sequence[dict[str, object]],
    prefix: str,
    during: Callable[[list[Client]], object] | None = None,
) -> list[Client]:
    """Run all at once, and ``during`` (a coroutine function) beside them; return them when all have ended.

    No prompt is found in a cache: each call has caches of its own.
    """
    clients = [
        Client(factory, {"cache_salt": prefix, **body}, f"{prefix}-{index}")
        for index, body in enumerate(bodies)
    ]
    async with asyncio.timeout(240), asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(client.run())
        if during is not None:
            await during(clients)
    return clients


def migrations(factory: RunningFactory) -> dict[tuple[str, str], int]:
    """How many there were, by reason and phase."""
    found = {}
    for line in factory.get("/metrics")[1].splitlines():
        if line.startswith("tokenmill_migrations_total{"):
            labels, value = line.split("{")[1].split("} ")
            pairs = dict(pair.replace('"', "").split("=") for pair in labels.split(","))
            found[pairs["reason"], pairs["phase"]] = int(float(value))
    return found
