"""A closed-loop load generator for ``/v1/completions``: so many connections, each busy all the time.

Raw asyncio protocols and no JSON on the way, so that it takes as little as possible of the cores that it
shares with what it measures. Each answer's token count is checked at its end, outside the timing.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import uvloop

from benchmarks.real_vllm.servers import MODEL_NAME

ANSWER_TIMEOUT_S = 120.0

_EVENT = b"data: {"
_END = b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Ask:
    """One request."""

    prompt: str
    max_tokens: int

    def body(self, **fields: object) -> dict[str, object]:
        """Its JSON: greedy, of exactly that length."""
        return {
            "model": MODEL_NAME,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            **fields,
        }


@dataclass
class Answer:
    """What came. Times in seconds after the request was sent; ``event_s``: of each event with tokens."""

    event_s: list[float] = field(default_factory=list)
    end_s: float = 0.0
    tokens: int = 0

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.event_s[0]

    @property
    def itl_s(self) -> float:
        """Mean time between tokens."""
        return (self.event_s[-1] - self.event_s[0]) / (self.tokens - 1)


@dataclass
class Result:
    """What a run gave, and how long it took."""

    answers: list[Answer]
    wall_s: float

    def figures(self) -> dict[str, float]:
        """Requests and tokens a second, and latencies in milliseconds."""
        ttft = sorted(1000 * answer.ttft_s for answer in self.answers)
        itl = sorted(1000 * answer.itl_s for answer in self.answers)
        gaps = [
            1000 * (late - early)
            for answer in self.answers
            for early, late in zip(answer.event_s, answer.event_s[1:], strict=False)
        ]
        return {
            "requests_per_s": len(self.answers) / self.wall_s,
            "tokens_per_s": sum(answer.tokens for answer in self.answers) / self.wall_s,
            "ttft_p50_ms": statistics.median(ttft),
            "ttft_p99_ms": percentile(ttft, 0.99),
            "itl_p50_ms": statistics.median(itl),
            "itl_p99_ms": percentile(itl, 0.99),
            "gap_p50_ms": statistics.median(gaps),
            "gap_p99_ms": percentile(sorted(gaps), 0.99),
        }


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of values in rising order."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class _Connection(asyncio.Protocol):
    """A kept connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer = Answer()
        self._begin_s = 0.0
        self._kept: list[bytes] = []
        self._tail = b""
        self._done: asyncio.Future[None] | None = None

    async def ask(self, head: bytes, max_tokens: int) -> Answer:
        """Send a request and wait for the whole answer. Raises RuntimeError when it is not as asked for."""
        assert self._transport is not None
        self._done = asyncio.get_running_loop().create_future()
        self._answer, self._kept, self._tail = Answer(), [], b""
        self._begin_s = time.perf_counter()
        self._transport.write(head)
        await asyncio.wait_for(self._done, ANSWER_TIMEOUT_S)
        answer = self._answer
        answer.tokens = tokens_of(b"".join(self._kept), max_tokens)
        answer.event_s = answer.event_s[:-1] or answer.event_s  # the last one tells the usage
        return answer

    def close(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now_s = time.perf_counter() - self._begin_s
        self._kept.append(data)
        # An event's or the answer's first bytes may have come with the piece before.
        events = (self._tail[-len(_EVENT) + 1 :] + data).count(_EVENT)
        if events:
            self._answer.event_s += [now_s] * events
        self._tail = (self._tail + data)[-len(_END) :]
        if self._tail == _END and self._done is not None and not self._done.done():
            self._answer.end_s = now_s
            self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            text = b"".join(self._kept)[-500:].decode(errors="replace")
            self._done.set_exception(RuntimeError(f"the connection broke: {exc}: {text}"))


def tokens_of(answer: bytes, wanted: int) -> int:
    """Tokens of a streamed answer by its own count. Raises RuntimeError when they are not so many."""
    status = answer.split(b"\r\n", 1)[0]
    if b" 200" not in status:
        raise RuntimeError(answer[:1000].decode(errors="replace"))
    start = answer.rindex(_EVENT) + len(_EVENT) - 1
    usage = json.loads(answer[start : answer.index(b"\n", start)])["usage"]
    if usage["completion_tokens"] != wanted:
        raise RuntimeError(f"{usage['completion_tokens']} of {wanted} tokens came")
    return wanted


def request_bytes(ask: Ask) -> bytes:
    """A request as it goes over the wire, streamed and with its usage at the end."""
    body = json.dumps(ask.body(stream=True, stream_options={"include_usage": True})).encode()
    return (
        "POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode() + body


async def _drive(port: int, clients: Sequence[Sequence[Ask]], until_s: float) -> Result:
    """Each client sends its requests one after the other; none is begun after ``until_s`` seconds."""
    loop = asyncio.get_running_loop()
    prepared = [[(request_bytes(ask), ask.max_tokens) for ask in asks] for asks in clients]
    connections = [(await loop.create_connection(_Connection, "127.0.0.1", port))[1] for _ in clients]
    answers: list[Answer] = []
    begin_s = time.perf_counter()

    async def run(connection: _Connection, asks: Sequence[tuple[bytes, int]]) -> None:
        for head, max_tokens in asks:
            if time.perf_counter() - begin_s > until_s:
                return
            answers.append(await connection.ask(head, max_tokens))

    try:
        async with asyncio.TaskGroup() as group:
            for connection, asks in zip(connections, prepared, strict=True):
                group.create_task(run(connection, asks))
        return Result(answers, time.perf_counter() - begin_s)
    finally:
        for connection in connections:
            connection.close()


def drive(port: int, clients: Sequence[Sequence[Ask]], until_s: float = float("inf")) -> Result:
    """Run to the end; the wall time is that of the last answer."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(port, clients, until_s))
