"""What a streamed token and a request cost the frontend in CPU time.

A frontend in this process serves scripted workers in another process to raw-socket clients in a third one, so
that the process time measured here is the frontend's alone. Run with ``PYTHONPATH=src``.

    python benchmarks/frontend_cpu.py [--connections 64] [--requests 640] [--tokens 64] [--words 200]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from tokenmill.protocol.ids import Role
from tokenmill.serve.fabric.registry import open_registry
from tokenmill.serve.frontend.wiring import frontend
from tokenmill.serve.process import configure_logging
from tokenmill.spec.process import FrontendConfig
from tokenmill.testing.scripted_worker import ScriptedWorker
from tokenmill.testing.tiny_tokenizer import write_tiny_tokenizer


def worker_process(registry_url: str, roles: list[str], tokens: int, pace_s: float, stop: Connection) -> None:
    async def serve() -> None:
        registry = open_registry(registry_url)
        await registry.start()
        output = [97 + index % 26 for index in range(tokens)]
        workers = [
            ScriptedWorker(
                registry,
                f"{role}-{index}",
                lambda _request: output,
                role=Role(role),
                pace_s=pace_s,
                max_model_len=1 << 20,
            )
            for index, role in enumerate(roles)
        ]
        for worker in workers:
            await worker.start()
        stop.send("ready")
        await asyncio.get_running_loop().run_in_executor(None, stop.recv)
        for worker in workers:
            await worker.stop()
        await registry.stop()

    uvloop.run(serve())


def client_process(port: int, connections: int, requests: int, body: bytes, done: Connection) -> None:
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    ).encode()

    async def one(left: list[int], firsts: list[float], counts: list[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while left[0] > 0:
            left[0] -= 1
            begin = time.perf_counter()
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer)
            if b"content-length" in answer:
                size = int(answer.split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(size)
                continue
            first = True
            while size := int(await reader.readline(), 16):
                await reader.readexactly(size + 2)
                counts[0] += 1
                if first:
                    firsts.append(time.perf_counter() - begin)
                    first = False
            await reader.readline()
        writer.close()

    async def run() -> None:
        firsts: list[float] = []
        counts = [0]
        left = [requests]
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(connections):
                group.create_task(one(left, firsts, counts))
        firsts.sort()
        median_ms = firsts[len(firsts) // 2] * 1e3 if firsts else 0.0
        done.send((time.perf_counter() - begin, counts[0], median_ms))

    done.recv()
    uvloop.run(run())


def quiet() -> None:
    configure_logging(FrontendConfig(log_level="error"))


async def measure(options: argparse.Namespace) -> None:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        url = f"file://{folder}/registry"
        ours, theirs = context.Pipe()
        roles = ["prefill", "decode"] if options.split else ["both"]
        worker = context.Process(
            target=worker_process, args=(url, roles, options.tokens, options.pace_ms / 1e3, theirs)
        )
        worker.start()
        await asyncio.to_thread(ours.recv)
        model = write_tiny_tokenizer(Path(folder) / "tiny")
        config = FrontendConfig(registry=url, model=str(model), port=0)
        async with frontend(config) as server:
            gc.collect()
            gc.freeze()
            for name, requests, tokens, stream in (
                ("warm-up", options.connections, options.tokens, True),
                ("streamed", options.requests, options.tokens, True),
                ("whole, 1 token", options.requests * 4, 1, False),
            ):
                await run_clients(context, server.port, name, requests, tokens, stream, options)
        ours.send("stop")
        await asyncio.to_thread(worker.join)


async def run_clients(context, port, name, requests, tokens, stream, options) -> None:
    prompt = "word " * options.words
    body = json.dumps({"prompt": prompt, "max_tokens": tokens, "stream": stream, "ignore_eos": True}).encode()
    ours, theirs = context.Pipe()
    client = context.Process(target=client_process, args=(port, options.connections, requests, body, theirs))
    client.start()
    await asyncio.sleep(1.0)
    ours.send("go")
    begin = resource.getrusage(resource.RUSAGE_SELF)
    wall_s, writes, ttft_ms = await asyncio.to_thread(ours.recv)
    end = resource.getrusage(resource.RUSAGE_SELF)
    system_s = end.ru_stime - begin.ru_stime
    cpu_s = end.ru_utime - begin.ru_utime + system_s
    await asyncio.to_thread(client.join)
    line = f"{name:15} {requests} requests: {cpu_s / requests * 1e6:8.1f} us CPU a request"
    line += f" ({system_s / cpu_s:.0%} in the kernel)"
    if stream:
        line += f", {cpu_s / requests / tokens * 1e6:6.2f} us a token all in"
        line += f", {writes / requests:.1f} writes a request, median first byte {ttft_ms:.1f} ms"
    print(f"{line}, {requests / wall_s:.0f} requests/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1280)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--words", type=int, default=40, help="words of the prompt, 5 tokens each")
    parser.add_argument("--pace-ms", type=float, default=2.0, help="between two tokens of a sequence")
    parser.add_argument("--split", action="store_true", help="prefill and decode on workers of their own")
    options = parser.parse_args()
    quiet()
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores")
    uvloop.run(measure(options))


if __name__ == "__main__":
    main()
