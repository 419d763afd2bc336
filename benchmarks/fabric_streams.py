"""What a token costs between a worker and a frontend: one frame a step against one frame a token.

256 streams, one token an item, over TCP and over a Unix socket; server and client are processes of their own,
both on uvloop. Prints CPU microseconds a token on each side, and beside it the floor: to encode and to
decode the same frame in memory, in the same run.

    PYTHONPATH=src python -m benchmarks.fabric_streams [--repeats 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time

import msgspec
import uvloop

from benchmarks.machine import machine, spread, write_result
from tokenmill.errors import TokenmillError
from tokenmill.protocol.items import Item, Tokens
from tokenmill.serve.fabric.codec import FrameCodec
from tokenmill.serve.fabric.frames import Data
from tokenmill.serve.fabric.streams import ServerStream, StreamConnection, StreamServer


class Run(msgspec.Struct, frozen=True, array_like=True):
    """What the server is asked for: ``streams`` calls like this, then it steps."""

    streams: int
    steps: int
    interval_ms: float
    one_frame_a_step: bool


async def step_through(server: StreamServer[Run, Item], streams: list[ServerStream[Run, Item]]) -> None:
    """One token for each stream a step, like an engine."""
    run = streams[0].call
    before = server.statistics()
    cpu_s = time.process_time()
    for step in range(run.steps):
        for stream in streams:
            stream.send(Tokens(step, [100_000 + step]))
            if not run.one_frame_a_step:
                server.flush()
        server.flush()
        await asyncio.sleep(run.interval_ms / 1000)
    cpu_s = time.process_time() - cpu_s
    for stream in streams:
        stream.end()
    server.flush()
    after = server.statistics()
    report = {
        "cpu_s": cpu_s,
        "frames": after.frames_out - before.frames_out,
        "bytes": after.bytes_out - before.bytes_out,
    }
    print(json.dumps(report), flush=True)


async def serve(address: str) -> None:
    waiting: list[ServerStream[Run, Item]] = []
    tasks: list[asyncio.Task[None]] = []

    def on_open(stream: ServerStream[Run, Item]) -> None:
        waiting.append(stream)
        if len(waiting) == stream.call.streams:
            tasks.append(asyncio.create_task(step_through(server, waiting.copy())))
            waiting.clear()

    server = StreamServer[Run, Item](Run, Item, on_open)
    print(await server.start(address), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await asyncio.gather(*tasks)
    await server.close()


async def listen_to(address: str, run: Run) -> float:
    """Return the client's CPU seconds for one run."""
    client = await StreamConnection[Run, Item].connect(address, Run, Item)
    tokens = 0
    open_streams = run.streams
    done = asyncio.Event()

    def on_item(item: Item) -> None:
        nonlocal tokens
        assert isinstance(item, Tokens)
        tokens += len(item.tokens)

    def on_end(error: TokenmillError | None) -> None:
        nonlocal open_streams
        assert error is None, error
        open_streams -= 1
        if not open_streams:
            done.set()

    cpu_s = time.process_time()
    for _ in range(run.streams):
        client.open(run, on_item, on_end)
    async with asyncio.timeout(120):
        await done.wait()
    cpu_s = time.process_time() - cpu_s
    assert tokens == run.streams * run.steps
    await client.close()
    return cpu_s


def measure(address: str, run: Run) -> dict[str, float]:
    """Return one run's figures."""
    command = [sys.executable, "-m", "benchmarks.fabric_streams", "--serve", address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        bound = server.stdout.readline().strip()
        client_s = uvloop.run(listen_to(bound, run))
        report = json.loads(server.stdout.readline())
        server.communicate()
    tokens = run.streams * run.steps
    return {
        "server_us_per_token": report["cpu_s"] / tokens * 1e6,
        "client_us_per_token": client_s / tokens * 1e6,
        "bytes_per_token": report["bytes"] / tokens,
        "frames_per_step": report["frames"] / run.steps,
    }


def measure_codec(streams: int, steps: int) -> dict[str, float]:
    """Return what encoding and decoding a step's frame costs by itself."""
    codec = FrameCodec[Run, Item](Run, Item)
    frame = Data([(stream, Tokens(500, [100_500])) for stream in range(1, streams + 1)], [])
    data = codec.encode(frame)
    begin_s = time.process_time()
    for _ in range(steps):
        codec.encode(frame)
    encoded_s = time.process_time()
    for _ in range(steps):
        codec.feed(data)
    decoded_s = time.process_time()
    tokens = streams * steps
    return {
        "server_us_per_token": (encoded_s - begin_s) / tokens * 1e6,
        "client_us_per_token": (decoded_s - encoded_s) / tokens * 1e6,
        "bytes_per_token": len(data) / streams,
        "frames_per_step": 1.0,
    }


def measure_all(arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    """Return each way's figures over the repeats, which take turns so that all see the same machine."""
    found: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.repeats):
            found.setdefault("codec alone", []).append(measure_codec(arguments.streams, arguments.steps))
            for name, address in (("tcp", "tcp://127.0.0.1:0"), ("unix", f"unix:{folder}/s")):
                for one_frame_a_step in (True, False):
                    run = Run(arguments.streams, arguments.steps, arguments.interval_ms, one_frame_a_step)
                    way = f"{name}, one frame a {'step' if one_frame_a_step else 'token'}"
                    found.setdefault(way, []).append(measure(address, run))
    return {
        way: {name: spread([each[name] for each in runs]) for name in runs[0]} for way, runs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--interval-ms", type=float, default=2.0)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments.serve))
        return
    about = machine()
    results = measure_all(arguments)
    print(f"{'CPU us a token, best (median)':28}{'server':>18}{'client':>18}{'bytes/token':>13}")
    for way, figures in results.items():
        columns = [figures[name] for name in ("server_us_per_token", "client_us_per_token")]
        texts = "".join(f"{each['min']:9.3f} ({each['median']:6.3f})" for each in columns)
        print(f"{way:28}{texts:>36}{figures['bytes_per_token']['median']:13.2f}")
    settings = {"streams": arguments.streams, "steps": arguments.steps, "interval_ms": arguments.interval_ms}
    print(write_result("fabric_streams", {"settings": settings, "results": results}, about))


if __name__ == "__main__":
    main()
