"""Real peers that are killed in the middle: nobody hangs, nothing is left behind."""

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from tokenmill.clock import SystemClock
from tokenmill.errors import HandoffFailed
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.serve.transfer.memory import HostKvMemory

pytestmark = [pytest.mark.processes, pytest.mark.parametrize("name", ["shm", "tcp"])]

LAYOUT = KvLayout(planes=8, block_tokens=16, token_bytes=4096, dtype="float32")
BLOCKS = 32
TOKENS = BLOCKS * LAYOUT.block_tokens

PEER = """
import asyncio, sys
from tokenmill.clock import SystemClock
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.serve.transfer.memory import HostKvMemory

role, name = sys.argv[1:]
LAYOUT = KvLayout(planes=8, block_tokens=16, token_bytes=4096, dtype="float32")

async def main():
    memory = HostKvMemory(LAYOUT, 32)
    transport = open_transport([name], host="127.0.0.1", run_dir=None, clock=SystemClock())
    await transport.start(memory)
    try:
        await (send if role == "send" else receive)(memory, transport)
    finally:
        await transport.stop()

async def line():
    return (await asyncio.to_thread(sys.stdin.readline)).strip()

def say(what):
    print(what, flush=True)

async def send(memory, transport):
    memory.region[:] = bytes(range(256)) * (memory.size_bytes // 256)
    export = transport.export(
        range(31, -1, -1), 512, lease_s=20, on_released=lambda taken: say(f"released {taken}")
    )
    say(export.descriptor.hex())
    while order := await line():
        if order == "seal":
            export.seal(b"meta")
        else:
            export.advance(int(order))

async def receive(memory, transport):
    pull = asyncio.create_task(transport.pull(bytes.fromhex(await line()), list(range(32))))
    while not any(memory.read(7, 0, 1)):
        await asyncio.sleep(0.001)
    say("copying")
    say((await pull).decode())

asyncio.run(main())
"""


class Peer:
    """A process at the other end, spoken to in lines."""

    def __init__(self, process):
        self.process = process

    async def line(self):
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().strip()

    async def tell(self, line):
        self.process.stdin.write(f"{line}\n".encode())
        await self.process.stdin.drain()

    async def kill(self):
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


@contextlib.asynccontextmanager
async def peer(role, name):
    """Start a peer; at the end it must have been killed, or ends by itself with status 0."""
    source = Path(__file__).parents[3] / "src"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-Werror",
        "-c",
        PEER,
        role,
        name,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    try:
        yield Peer(process)
        process.stdin.close()
        async with asyncio.timeout(20):
            assert await process.wait() in {0, -signal.SIGKILL}
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        process.stdin.close()
        process._transport.close()


@contextlib.asynccontextmanager
async def ours(name):
    memory = HostKvMemory(LAYOUT, BLOCKS)
    transport = open_transport([name], host="127.0.0.1", run_dir=None, clock=SystemClock())
    await transport.start(memory)
    try:
        yield transport, memory
    finally:
        await transport.stop()
        memory.close()


async def test_a_cache_comes_from_another_process(name):
    async with ours(name) as (transport, memory), peer("send", name) as sender:
        descriptor = bytes.fromhex(await sender.line())
        pull = asyncio.create_task(transport.pull(descriptor, list(range(BLOCKS))))
        await sender.tell(100)
        await sender.tell("seal")
        assert await pull == b"meta"
        assert await sender.line() == "released True"
        expected = bytes(range(256)) * (memory.size_bytes // 256)
        assert np.array_equal(np.frombuffer(memory.region, np.uint8), np.frombuffer(expected, np.uint8))


@pytest.mark.parametrize("when", ["before a byte", "half way"])
async def test_a_killed_sender_fails_the_pull_at_once(name, when, mappings):
    async with ours(name) as (transport, memory), peer("send", name) as sender:
        descriptor = bytes.fromhex(await sender.line())
        pull = asyncio.create_task(transport.pull(descriptor, list(range(BLOCKS)), idle_timeout_s=1000))
        if when == "half way":
            await sender.tell(TOKENS // 2)
            while not any(memory.read(7, BLOCKS // 2 - 1, 1)):
                await asyncio.sleep(0.001)
        else:
            await asyncio.sleep(0.1)
        await sender.kill()
        async with asyncio.timeout(20):
            with pytest.raises(HandoffFailed):
                await pull
        await asyncio.sleep(0.01)
        assert len(mappings()) == 1, "the dead peer's memory is still mapped"


async def test_a_killed_receiver_frees_the_export_at_once(name):
    async with ours(name) as (transport, memory), peer("receive", name) as receiver:
        memory.region[:] = b"\1" * memory.size_bytes
        released = asyncio.get_running_loop().create_future()
        export = transport.export(range(BLOCKS), TOKENS, lease_s=1000, on_released=released.set_result)
        await receiver.tell(export.descriptor.hex())
        export.advance(TOKENS // 2)
        assert await receiver.line() == "copying"
        await receiver.kill()
        async with asyncio.timeout(20):
            assert await released is False


async def test_a_restarted_sender_is_mapped_anew(name):
    async with ours(name) as (transport, memory):
        for _ in range(2):
            memory.region[:] = bytes(memory.size_bytes)
            async with peer("send", name) as sender:
                descriptor = bytes.fromhex(await sender.line())
                await sender.tell("seal")
                assert await transport.pull(descriptor, list(range(BLOCKS))) == b"meta"
                assert memory.read(0, 0, 1)[:256] == bytes(range(256))
                await sender.kill()


async def test_a_stopped_sender_is_given_up_after_the_idle_timeout(name):
    """Stopped like a process under a debugger: its connection stays open, but nothing comes."""
    async with ours(name) as (transport, _), peer("send", name) as sender:
        descriptor = bytes.fromhex(await sender.line())
        pull = asyncio.create_task(transport.pull(descriptor, list(range(BLOCKS)), idle_timeout_s=0.3))
        await sender.tell(10)
        sender.process.send_signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(20):
                with pytest.raises(HandoffFailed):
                    await pull
        finally:
            sender.process.send_signal(signal.SIGCONT)
        assert await sender.line() == "released False"
