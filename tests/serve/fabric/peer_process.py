"""A peer in a process of its own, so that it can be killed or frozen. Prints a line when it is ready."""
# ruff: noqa: T201

from __future__ import annotations

import asyncio
import sys

from tokenmill.serve.fabric.registry import open_registry
from tokenmill.serve.fabric.streams import ServerStream, StreamConnection, StreamServer


async def serve(address: str) -> None:
    """Answer each call with one item, and never end it."""

    def on_open(stream: ServerStream[str, list[int]]) -> None:
        stream.send([1])

    server = StreamServer[str, list[int]](str, list[int], on_open)
    print(await server.start(address), flush=True)
    await asyncio.sleep(60)


async def call(address: str, streams: str) -> None:
    """Open streams and hold them."""
    client = await StreamConnection[str, list[int]].connect(address, str, list[int])
    for number in range(int(streams)):
        client.open(str(number), lambda item: None, lambda error: None)
    print("open", flush=True)
    await asyncio.sleep(60)


async def announce(url: str, key: str, ttl_s: str) -> None:
    """Hold a key under a lease; then say whether the lease was lost."""
    registry = open_registry(url)
    await registry.start()
    lease = await registry.lease(float(ttl_s))
    await registry.put(key, b"here", lease=lease)
    print("put", flush=True)
    while not lease.lost:
        await asyncio.sleep(0.02)
    print("lost", flush=True)
    await registry.stop()


async def count(url: str, key: str, times: str) -> None:
    """Add one to a counter, so many times, by compare-and-swap."""
    registry = open_registry(url)
    await registry.start()
    print("ready", flush=True)
    for _ in range(int(times)):
        while True:
            before = await registry.get(key)
            after = str(int(before or b"0") + 1).encode()
            if await registry.compare_and_swap(key, before, after):
                break
    await registry.stop()
    print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]](*sys.argv[2:]))
