"""The same requests for every system, sent by ``wrk``, and what one client sees of a single answer.

It must not know which system it talks to.
"""

from __future__ import annotations

import json
import random
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.side_by_side.model import lexicon
from benchmarks.side_by_side.plants import MODEL_NAME

BODIES = 4000
"""Different prompts a scenario: more than a round sends, so that no cache of whole prompts does the work."""

_SCRIPT = """
local bodies, at = {}, 0
local threads = 0
function setup(thread) thread:set("offset", threads); threads = threads + 1 end
function init(args)
  for line in io.lines(args[1]) do bodies[#bodies + 1] = line end
  at = (tonumber(args[2]) + offset * 997) % #bodies
  wrk.method, wrk.headers["content-type"] = "POST", "application/json"
end
function request()
  at = at % #bodies + 1
  return wrk.format(nil, "/v1/chat/completions", nil, bodies[at])
end
function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format('\\nRESULT {"requests": %d, "wall_s": %f, "bytes": %d, "errors": %d,',
    summary.requests, summary.duration / 1e6, summary.bytes, failed))
  io.write(string.format('"p50_ms": %f, "p99_ms": %f}\\n',
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
end
"""


@dataclass(frozen=True)
class Scenario:
    """One kind of request. ``words`` of prompt, ``tokens`` of answer."""

    key: str
    words: int
    tokens: int
    stream: bool
    connections: int = 64

    def __str__(self) -> str:
        how = "streamed" if self.stream else "unary"
        return (
            f"({self.key}) {self.words} words in / {self.tokens} out, {how}, {self.connections} connections"
        )


SCENARIOS = (
    Scenario("a", 200, 64, stream=True),
    Scenario("b", 500, 256, stream=True),
    Scenario("c", 60, 1, stream=False),
    Scenario("d", 200, 64, stream=True, connections=1),
)


@dataclass(frozen=True)
class Answer:
    """What a client saw of one streamed answer; times in milliseconds from sending the request."""

    first_byte_ms: float
    first_text_ms: float
    last_byte_ms: float
    text_events: int
    events: int
    finish_reason: str
    wire_bytes: int


def write_bodies(folder: Path, scenario: Scenario, seed: int = 5) -> Path:
    """Write the scenario's request bodies, one a line."""
    path = folder / f"bodies-{scenario.words}-{scenario.tokens}-{scenario.stream}.jsonl"
    if path.exists():
        return path
    chance = random.Random(seed)
    words, weights = lexicon()
    with path.open("w") as out:
        for _ in range(BODIES):
            out.write(
                json.dumps(body(scenario, " ".join(chance.choices(words, weights, k=scenario.words)))) + "\n"
            )
    return path


def body(scenario: Scenario, text: str) -> dict[str, object]:
    """One request; ``ignore_eos`` so that every answer has its full length."""
    return {
        "model": MODEL_NAME,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": scenario.tokens,
        "stream": scenario.stream,
        "ignore_eos": True,
    }


def write_script(folder: Path) -> Path:
    """Write wrk's script."""
    path = folder / "chat.lua"
    path.write_text(_SCRIPT)
    return path


def wrk(
    script: Path, bodies: Path, port: int, connections: int, seconds: int, offset: int
) -> dict[str, float]:
    """Send for ``seconds``; returns wrk's counts. Raises RuntimeError where anything was not answered with
    200."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script)]
    command += [f"http://127.0.0.1:{port}", "--", str(bodies), str(offset)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout.rpartition("RESULT ")[2])
    if result["errors"]:
        raise RuntimeError(f"{result['errors']:g} requests failed:\n{done.stdout}")
    return result


class Client:
    """One plain blocking client on one kept-alive connection, as a simple program has it."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60)
        self._pending = b""

    def ask(self, content: dict[str, object]) -> Answer:
        """Send a streamed chat and read its answer to the end."""
        data = json.dumps(content).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        began = time.perf_counter()
        self._socket.sendall(head.encode() + data)
        received, first_byte, first_text = b"", 0.0, 0.0
        while not received.endswith(b"0\r\n\r\n"):
            part = self._socket.recv(1 << 16)
            if not part:
                raise RuntimeError(f"the connection was closed after {received!r}")
            now = time.perf_counter()
            first_byte = first_byte or now
            received += part
            if not first_text and any(_text(event) for event in _events(received)):
                first_text = now
        if not received.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(received.decode(errors="replace"))
        return _answer(received, (first_byte - began, first_text - began, time.perf_counter() - began))

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _answer(received: bytes, seconds: tuple[float, float, float]) -> Answer:
    events = _events(received)
    reasons = [choice["finish_reason"] for event in events for choice in event["choices"]]
    first_byte_s, first_text_s, last_byte_s = seconds
    return Answer(
        first_byte_ms=first_byte_s * 1e3,
        first_text_ms=first_text_s * 1e3,
        last_byte_ms=last_byte_s * 1e3,
        text_events=sum(map(_text, events)),
        events=len(events),
        finish_reason=next((reason for reason in reasons if reason), ""),
        wire_bytes=len(received),
    )


def _events(received: bytes) -> list[dict[str, list[dict[str, object]]]]:
    body = _unchunked(received.partition(b"\r\n\r\n")[2])
    lines = [line[6:] for line in body.split(b"\n\n")[:-1] if line.startswith(b"data: ")]
    return [json.loads(line) for line in lines if line != b"[DONE]"]


def _unchunked(data: bytes) -> bytes:
    """The body as far as it has come."""
    body = b""
    while True:
        size, found, rest = data.partition(b"\r\n")
        if not found or not size:
            return body
        length = int(size, 16)
        body += rest[:length]
        if not length or len(rest) < length + 2:
            return body
        data = rest[length + 2 :]


def _text(event: dict[str, list[dict[str, object]]]) -> bool:
    return any(
        isinstance(d := choice.get("delta"), dict) and bool(d.get("content")) for choice in event["choices"]
    )
