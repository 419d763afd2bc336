"""What the tests of this room share: memories, pairs of transports, and the check that nothing leaks."""

import asyncio
import contextlib
import gc
import random
from pathlib import Path

import pytest

from tokenmill.clock import SystemClock
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.serve.transfer.memory import HostKvMemory


def _mapping_lines():
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if "tokenmill-kv" in line]


@pytest.fixture
def mappings():
    """A function that gives this process's mappings of KV memory, without those that were there before:
    what an earlier test's tensors still hold is not this test's."""
    gc.collect()
    before = set(_mapping_lines())
    return lambda: [line for line in _mapping_lines() if line not in before]


LAYOUT = KvLayout(planes=4, block_tokens=16, token_bytes=64, dtype="float32")


class DeviceMemory:
    """KV memory that only ``read`` and ``write`` reach, as on a GPU."""

    region = None
    fd = None

    def __init__(self, layout, blocks):
        self.layout = layout
        self.blocks = blocks
        self.content = bytearray(layout.planes * blocks * layout.block_bytes)

    def _start(self, plane, block, token=0):
        return (plane * self.blocks + block) * self.layout.block_bytes + token * self.layout.token_bytes

    def read(self, plane, block, tokens):
        start = self._start(plane, block)
        return bytes(self.content[start : start + tokens * self.layout.token_bytes])

    def write(self, plane, block, data, first_token=0):
        start = self._start(plane, block, first_token)
        assert len(data) + first_token * self.layout.token_bytes <= self.layout.block_bytes
        self.content[start : start + len(data)] = data

    def close(self):
        self.content = bytearray()


@pytest.fixture
def device_memory():
    return DeviceMemory


def _tokens_of(memory, blocks, first, last):
    """Return tokens first .. last of all planes, plane by plane, read one token at a time."""
    size = memory.layout.block_tokens
    return [
        memory.read(plane, blocks[token // size], token % size + 1)[-memory.layout.token_bytes :]
        for plane in range(memory.layout.planes)
        for token in range(first, last)
    ]


@pytest.fixture
def tokens_of():
    return _tokens_of


@pytest.fixture
def fill():
    """Write seeded noise into all of a memory."""

    def fill_memory(memory, seed=0):
        noise = random.Random(seed)
        for plane in range(memory.layout.planes):
            for block in range(memory.blocks):
                memory.write(plane, block, noise.randbytes(memory.layout.block_bytes))

    return fill_memory


def _descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def no_open_descriptors():
    """Every test gives back its file descriptors."""
    before = _descriptors()
    yield
    if _descriptors() > before:
        gc.collect()
    assert _descriptors() <= before


@pytest.fixture
def open_pair():
    """Return an async context manager of sender, receiver and their memories, stopped at its end."""

    @contextlib.asynccontextmanager
    async def pair(
        sending=("shm", "tcp"), receiving=("shm", "tcp"), *, source=None, target=None, checksums=False
    ):
        source = source or HostKvMemory(LAYOUT, 64)
        target = target or HostKvMemory(LAYOUT, 64)
        sender = open_transport(list(sending), host="127.0.0.1", run_dir=None, clock=SystemClock())
        receiver = open_transport(
            list(receiving), host="127.0.0.1", run_dir=None, clock=SystemClock(), checksums=checksums
        )
        before = asyncio.all_tasks()
        try:
            await sender.start(source)
            await receiver.start(target)
            yield sender, receiver, source, target
        finally:
            await receiver.stop()
            await sender.stop()
            assert asyncio.all_tasks() <= before
            source.close()
            target.close()

    return pair
