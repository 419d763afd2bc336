"""An open-loop load generator: requests leave on their schedule, whether or not earlier ones have ended.

It sends token ids to ``/v1/completions`` over raw asyncio streams, so that it takes as little as possible
of the cores that it shares with what it measures.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field


@dataclass
class Shape:
    """One kind of request: prompt and output length in tokens, and its share of the arrivals."""

    name: str
    prompt_tokens: int
    output_tokens: int
    share: float


@dataclass
class Arrival:
    """A request that will be sent ``at_s`` seconds after the start."""

    at_s: float
    shape: Shape
    prompt: list[int]
    seed: int


@dataclass
class Sample:
    """What one request saw. Times in seconds after it was due; ``gaps`` between its tokens' events."""

    shape: str
    due_s: float
    ttft_s: float = float("inf")
    gaps_s: list[float] = field(default_factory=list)
    end_s: float = float("inf")
    tokens: int = 0
    error: str = ""

    def gap_p99_s(self) -> float:
        """The 99th percentile of this request's inter-token times (the largest of up to 100)."""
        if not self.gaps_s:
            return 0.0
        ordered = sorted(self.gaps_s)
        return ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def poisson(shapes: list[Shape], rate: float, duration_s: float, vocab: range, seed: int) -> list[Arrival]:
    """Draw Poisson arrivals of ``rate`` requests a second; the same seed gives the same requests."""
    source = random.Random(seed)
    arrivals, now = [], 0.0
    while (now := now + source.expovariate(rate)) < duration_s:
        shape = source.choices(shapes, [shape.share for shape in shapes])[0]
        prompt = source.choices(vocab, k=shape.prompt_tokens)
        arrivals.append(Arrival(now, shape, prompt, source.randrange(2**31)))
    return arrivals


async def run(host: str, port: int, model: str, arrivals: list[Arrival], timeout_s: float) -> list[Sample]:
    """Send all arrivals and gather what they saw; the run ends ``timeout_s`` after the last arrival."""
    start = time.monotonic() + 0.2
    samples = [Sample(arrival.shape.name, arrival.at_s) for arrival in arrivals]
    tasks = [
        asyncio.create_task(_request(host, port, model, arrival, sample, start))
        for arrival, sample in zip(arrivals, samples, strict=True)
    ]
    if tasks:
        budget = arrivals[-1].at_s + timeout_s
        _, late = await asyncio.wait(tasks, timeout=budget)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return samples


async def _request(host: str, port: int, model: str, arrival: Arrival, sample: Sample, start: float) -> None:
    due = start + arrival.at_s
    body = json.dumps(
        {
            "model": model,
            "prompt": arrival.prompt,
            "max_tokens": arrival.shape.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
    ).encode()
    await asyncio.sleep(max(0.0, due - time.monotonic()))
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(head + body)
        last = due
        async for line in reader:
            if line.startswith(b"HTTP/1.1 ") and not line.startswith(b"HTTP/1.1 200"):
                sample.error = line.decode().strip()
            if not line.startswith(b"data: {"):
                continue
            now = time.monotonic()
            if sample.tokens == 0:
                sample.ttft_s = now - due
            elif sample.tokens < arrival.shape.output_tokens:
                sample.gaps_s.append(now - last)
            last = now
            sample.tokens += 1
        sample.end_s = time.monotonic() - due
    except OSError as error:
        sample.error = str(error)
    finally:
        writer.close()
