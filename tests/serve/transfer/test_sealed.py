"""Exports whose descriptors their owner writes, sealed before they are let out: taken in one round trip."""

import asyncio
import contextlib

import pytest

from tokenmill.errors import HandoffFailed
from tokenmill.serve.transfer import control
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.exports import ExportTable
from tokenmill.serve.transfer.memory import HostKvMemory

LAYOUT = KvLayout(planes=4, block_tokens=1, token_bytes=512, dtype="bytes")
LARGE = KvLayout(planes=4, block_tokens=1, token_bytes=1 << 17, dtype="bytes")
KEY = (7, b"k" * 16)

each_way = pytest.mark.parametrize("names", [("shm",), ("tcp",)], ids=["shm", "tcp"])


def ticket_of(transport, key, blocks, lease_s=5.0):
    """A descriptor as its owner writes it: nobody asks the transport for it."""
    export, token = key
    blank = transport.blank_ticket()
    return control.encode_ticket(
        blank.filled(export=export, token=token, blocks=blocks, tokens=len(blocks), lease_s=lease_s)
    )


def offered(transport, key, blocks, lease_s=5.0):
    """An export with a key; returns its descriptor and how it ends."""
    ends = asyncio.get_running_loop().create_future()
    export = transport.export(blocks, len(blocks), lease_s=lease_s, on_released=ends.set_result, key=key)
    assert export.descriptor == ticket_of(transport, key, blocks, lease_s)
    export.seal(b"meta")
    return export, ends


@each_way
@pytest.mark.parametrize("layout", [LAYOUT, LARGE], ids=["inline", "in threads"])
async def test_sealed_exports_are_pulled_again_and_again(names, layout, open_pair, fill, tokens_of):
    source, target = HostKvMemory(layout, 16), HostKvMemory(layout, 16)
    async with open_pair(names, names, source=source, target=target) as (a, b, _, _):
        fill(source)
        for number in range(1, 5):  # the first connects and maps, the others go ahead
            theirs, ours = [number, 9, 3, number + 10], [2, 7, 5, 1]
            _, ends = offered(a, (number, KEY[1]), theirs)
            descriptor = ticket_of(a, (number, KEY[1]), theirs)
            assert await b.pull(descriptor, ours, from_token=1, sealed=True) == b"meta"
            assert tokens_of(target, ours, 1, 4) == tokens_of(source, theirs, 1, 4)
            assert await ends is True


async def warm(a, b):
    """Have a connection kept, and the memory mapped."""
    _, ends = offered(a, (1, KEY[1]), [1])
    await b.pull(ticket_of(a, (1, KEY[1]), [1]), [1], sealed=True)
    await ends


@pytest.fixture
def pair(open_pair):
    @contextlib.asynccontextmanager
    async def open_warm():
        source, target = HostKvMemory(LAYOUT, 16), HostKvMemory(LAYOUT, 16)
        async with open_pair(("shm",), ("shm",), source=source, target=target) as (a, b, _, _):
            await warm(a, b)
            yield a, b

    return open_warm


async def test_one_that_has_ended_is_refused(pair):
    async with pair() as (a, b):
        export, ends = offered(a, KEY, [3, 4])
        export.withdraw("changed my mind")
        assert await ends is False
        with pytest.raises(HandoffFailed, match="changed my mind"):
            await b.pull(ticket_of(a, KEY, [3, 4]), [1, 2], sealed=True)
        await warm_again(a, b)


async def warm_again(a, b):
    _, ends = offered(a, (99, KEY[1]), [1])
    await b.pull(ticket_of(a, (99, KEY[1]), [1]), [1], sealed=True)
    assert await ends is True


async def test_one_that_was_not_sealed_fails(pair):
    async with pair() as (a, b):
        ends = asyncio.get_running_loop().create_future()
        export = a.export([3, 4], 2, lease_s=5, on_released=ends.set_result, key=KEY)
        with pytest.raises(HandoffFailed, match="lease ended"):
            await b.pull(export.descriptor, [1, 2], sealed=True)
        assert await ends is False


async def test_a_lease_that_ends_during_the_copy_fails_the_pull(pair, monkeypatch):
    async with pair() as (a, b):
        export, ends = offered(a, KEY, [3, 4])
        from tokenmill.serve.transfer.moving import MapJob

        whole = MapJob.run

        def run(job):
            whole(job)
            export.withdraw("foreign by now")

        monkeypatch.setattr(MapJob, "run", run)
        with pytest.raises(HandoffFailed):
            await b.pull(export.descriptor, [1, 2], sealed=True)
        assert await ends is False


async def test_a_kept_connection_that_has_died_is_replaced(pair):
    async with pair() as (a, b):
        (sender, _) = a._running
        for channel in list(sender._channels.values()):
            channel.abort()
        _, ends = offered(a, KEY, [3, 4])
        assert await b.pull(ticket_of(a, KEY, [3, 4]), [1, 2], sealed=True) == b"meta"
        assert await ends is True


async def test_a_cancelled_pull_gives_the_export_back(pair, monkeypatch):
    async with pair() as (a, b):
        (sender, _) = a._running
        export, ends = offered(a, KEY, [3, 4])
        answered = asyncio.Event()
        monkeypatch.setattr(sender, "_send", lambda *_, **__: answered.set())
        task = asyncio.create_task(b.pull(export.descriptor, [1, 2], sealed=True))
        async with asyncio.timeout(10):
            await answered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        monkeypatch.undo()
        async with asyncio.timeout(10):
            await ends


def test_a_key_is_used_once():
    exports = ExportTable()
    assert exports.add([1], 1, 1.0, KEY).export == 7
    with pytest.raises(ValueError, match="7 is open"):
        exports.add([1], 1, 1.0, KEY)
    assert exports.add([1], 1, 1.0).export == 8
