"""Exports and pulls between two transports of one process, over every driver."""

import asyncio
import contextlib
import random
import socket
import threading
import time

import msgspec
import numpy as np
import pytest

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError, HandoffFailed
from tokenmill.serve.transfer import control, moving, sender
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.convert import convert
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.serve.transfer.exports import ExportTable, Send
from tokenmill.serve.transfer.memory import HostKvMemory

LAYOUT = KvLayout(planes=4, block_tokens=16, token_bytes=64, dtype="float32")
LARGE = KvLayout(planes=4, block_tokens=16, token_bytes=4096, dtype="float32")
DRIVERS = [("shm",), ("tcp",), ("shm", "tcp")]
ids = "+".join

each_driver = pytest.mark.parametrize("names", DRIVERS, ids=ids)
each_single = pytest.mark.parametrize("names", DRIVERS[:2], ids=ids)


class Ends(list):
    """Records how an export ended, and lets a test wait for it."""

    def __init__(self):
        super().__init__()
        self.event = asyncio.Event()

    def __call__(self, taken):
        self.append(taken)
        self.event.set()

    async def wait(self):
        async with asyncio.timeout(10):
            await self.event.wait()
        return self


def table(count, blocks, seed):
    return random.Random(seed).sample(range(blocks), count)


async def settled():
    for _ in range(5):
        await asyncio.sleep(0.001)


@each_driver
@pytest.mark.parametrize("streams_from", [1, 1 << 40], ids=["several streams", "one stream"])
@pytest.mark.parametrize("layout", [LAYOUT, LARGE], ids=["inline", "in threads"])
async def test_a_ready_cache_is_pulled(names, layout, streams_from, open_pair, fill, tokens_of, monkeypatch):
    monkeypatch.setattr("tokenmill.serve.transfer.pull._PARALLEL_BYTES", streams_from)
    source, target = HostKvMemory(layout, 32), HostKvMemory(layout, 32)
    async with open_pair(names, names, source=source, target=target) as (a, b, _, _):
        fill(source)
        ends = Ends()
        theirs, ours = table(10, 32, 1), table(10, 32, 2)
        export = a.export(theirs, 150, lease_s=5, on_released=ends)
        export.seal(b"meta")
        before = bytes(target.region)
        assert await b.pull(export.descriptor, ours) == b"meta"
        assert await ends.wait() == [True]
        assert tokens_of(target, ours, 0, 150) == tokens_of(source, theirs, 0, 150)
        assert tokens_of(target, ours, 150, 160) == [bytes(layout.token_bytes)] * 4 * 10
        assert sum(a != b for a, b in zip(before, target.region, strict=True)) <= 150 * 4 * layout.token_bytes


@each_driver
async def test_chunks_are_copied_as_they_become_ready(names, open_pair, fill, tokens_of):
    async with open_pair(names, names) as (a, b, source, target):
        ends = Ends()
        theirs, ours = table(10, 64, 1), table(10, 64, 2)
        export = a.export(theirs, 150, lease_s=5, on_released=ends)
        pull = asyncio.create_task(b.pull(export.descriptor, ours, from_token=5))
        fill(source)
        for ready in (3, 40, 77):
            export.advance(ready)
            while tokens_of(target, ours, 5, ready) != tokens_of(source, theirs, 5, ready):
                await asyncio.sleep(0.001)
            assert not pull.done()
        assert not ends
        export.seal(b"m")
        assert await pull == b"m"
        assert await ends.wait() == [True]
        assert tokens_of(target, ours, 5, 150) == tokens_of(source, theirs, 5, 150)
        assert tokens_of(target, ours, 0, 5) == [bytes(64)] * 4 * 5


class JumpingClock(SystemClock):
    """The machine's clock, and what it was put forward by."""

    ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


@each_driver
async def test_waiting_for_the_sender_is_not_told_as_time_of_moving(names, open_pair, fill, tokens_of):
    async with open_pair(names, names) as (a, b, source, target):
        fill(source)
        clock = b._running[1]._clock = JumpingClock()
        moved, ends = [], Ends()
        theirs, ours = table(10, 64, 1), table(10, 64, 2)
        export = a.export(theirs, 150, lease_s=5, on_released=ends)
        pull = asyncio.create_task(b.pull(export.descriptor, ours, idle_timeout_s=1e6, on_moved=moved.append))
        export.advance(40)
        while tokens_of(target, ours, 0, 40) != tokens_of(source, theirs, 0, 40):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # copied, so that it has gone on to wait
        clock.ahead_s += 1000.0
        export.seal(b"m")
        assert await pull == b"m"
        assert await ends.wait() == [True]
        assert len(moved) == 1
        assert 0 < moved[0] < 1000.0


@each_driver
async def test_all_in_our_prefix_cache_moves_nothing_but_the_meta(names, open_pair, fill):
    async with open_pair(names, names) as (a, b, source, target):
        fill(source)
        ends = Ends()
        export = a.export([1, 2], 32, lease_s=5, on_released=ends)
        export.seal(b"meta")
        assert await b.pull(export.descriptor, [4, 5], from_token=32) == b"meta"
        assert await ends.wait() == [True]
        assert not any(target.region)


@each_single
@pytest.mark.parametrize("source_block", [8, 16])
@pytest.mark.parametrize(
    ("source_dtype", "target_dtype"),
    [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float32"), ("float32", "float32")],
)
async def test_layouts_are_converted(names, source_block, source_dtype, target_dtype, open_pair, tokens_of):
    size = {"float32": 4, "bfloat16": 2, "float16": 2}
    source = HostKvMemory(KvLayout(3, source_block, 32 * size[source_dtype], source_dtype), 64)
    target = HostKvMemory(KvLayout(3, 16, 32 * size[target_dtype], target_dtype), 32)
    values = np.random.default_rng(0).normal(size=3 * 64 * source_block * 32).astype(np.float32)
    source.region[:] = convert(values.tobytes(), "float32", source_dtype)
    async with open_pair(names, names, source=source, target=target, checksums=True) as (a, b, _, _):
        theirs, ours = table(20, 64, 1), table(10, 32, 2)
        export = a.export(theirs, 150, lease_s=5, on_released=Ends())
        export.seal(b"")
        await b.pull(export.descriptor, ours, from_token=7)
        expected = [bytes(convert(t, source_dtype, target_dtype)) for t in tokens_of(source, theirs, 7, 150)]
        assert tokens_of(target, ours, 7, 150) == expected


@each_single
@pytest.mark.parametrize("where", ["source", "target", "both"])
@pytest.mark.parametrize("layout", [LAYOUT, LARGE], ids=["inline", "in threads"])
async def test_device_memory_is_staged(names, where, layout, open_pair, fill, tokens_of, device_memory):
    other = msgspec.structs.replace(layout, block_tokens=12)
    source = (HostKvMemory if where == "target" else device_memory)(layout, 32)
    target = (HostKvMemory if where == "source" else device_memory)(other, 32)
    async with open_pair(names, names, source=source, target=target, checksums=True) as (a, b, _, _):
        fill(source)
        theirs, ours = table(10, 32, 1), table(13, 32, 2)
        export = a.export(theirs, 150, lease_s=5, on_released=Ends())
        export.seal(b"m")
        assert await b.pull(export.descriptor, ours, from_token=3) == b"m"
        assert tokens_of(target, ours, 3, 150) == tokens_of(source, theirs, 3, 150)


async def test_a_device_of_another_dtype_is_staged_and_converted(open_pair, tokens_of, device_memory):
    source = HostKvMemory(LAYOUT, 8)
    target = device_memory(KvLayout(4, 16, 32, "bfloat16"), 8)
    source.region[:] = (
        np.random.default_rng(0).normal(size=source.size_bytes // 4).astype(np.float32).tobytes()
    )
    for names in (("shm",), ("tcp",)):
        async with open_pair(names, names, source=source, target=target) as (a, b, _, _):
            export = a.export([3, 1], 32, lease_s=5, on_released=Ends())
            export.seal(b"")
            await b.pull(export.descriptor, [0, 7])
            expected = [bytes(convert(t, "float32", "bfloat16")) for t in tokens_of(source, [3, 1], 0, 32)]
            assert tokens_of(target, [0, 7], 0, 32) == expected
            break
    source.close()


@each_single
async def test_unlike_layouts_fail_before_a_byte_is_copied(names, open_pair, fill):
    target = HostKvMemory(KvLayout(5, 16, 64, "float32"), 8)
    async with open_pair(names, names, target=target) as (a, b, source, _):
        fill(source)
        ends = Ends()
        export = a.export([0], 16, lease_s=5, on_released=ends)
        export.seal(b"")
        with pytest.raises(HandoffFailed, match=r"planes=4.*planes=5"):
            await b.pull(export.descriptor, [0])
        assert not any(target.region)
        assert not ends


@each_single
@pytest.mark.parametrize("layout", [LAYOUT, LARGE], ids=["inline", "in threads"])
async def test_corruption_is_seen_with_checksums(names, layout, open_pair, fill, monkeypatch):
    source, target = HostKvMemory(layout, 32), HostKvMemory(layout, 32)

    class Flipping(moving.DigestJob):
        """Flips one bit of what arrived before it is checked."""

        def run(self):
            if self._extent.memory is target:
                target.region[5] ^= 1
            super().run()

    async with open_pair(names, names, source=source, target=target, checksums=True) as (a, b, _, _):
        fill(source)
        monkeypatch.setattr("tokenmill.serve.transfer.pull.DigestJob", Flipping)
        ends = Ends()
        export = a.export(list(range(10)), 160, lease_s=5, on_released=ends)
        export.seal(b"")
        with pytest.raises(HandoffFailed, match="checksum"):
            await b.pull(export.descriptor, list(range(10)))
        assert await ends.wait() == [False]


@each_single
async def test_a_withdrawn_export_fails_the_pull_with_its_reason(names, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        ends = Ends()
        export = a.export([0], 16, lease_s=5, on_released=ends)
        pull = asyncio.create_task(b.pull(export.descriptor, [0]))
        await asyncio.sleep(0.02)
        export.withdraw("prefill was cancelled")
        assert ends == [False]
        with pytest.raises(HandoffFailed, match="prefill was cancelled"):
            await pull
        export.advance(3)
        export.seal(b"")
        export.withdraw("again")
        assert ends == [False]
        with pytest.raises(HandoffFailed, match="prefill was cancelled"):
            await b.pull(export.descriptor, [0])


@each_single
async def test_a_lease_that_nobody_takes_ends(names, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        ends = Ends()
        export = a.export([0], 16, lease_s=0.05, on_released=ends)
        export.seal(b"")
        assert await ends.wait() == [False]
        with pytest.raises(HandoffFailed, match="lease ended"):
            await b.pull(export.descriptor, [0])


@each_single
async def test_a_receiver_that_waits_keeps_the_export(names, open_pair, fill):
    """Being filled takes longer than a lease; the receiver's heartbeats say that it is still there."""
    async with open_pair(names, names) as (a, b, source, _):
        fill(source)
        ends = Ends()
        export = a.export([0], 16, lease_s=0.15, on_released=ends)
        pull = asyncio.create_task(b.pull(export.descriptor, [0]))
        await asyncio.sleep(0.6)
        assert not ends
        export.seal(b"m")
        assert await pull == b"m"
        assert await ends.wait() == [True]


@each_single
async def test_a_receiver_that_copies_for_long_keeps_its_lease(names, open_pair, monkeypatch):
    """Sealed at once, copied in small pieces for many times the lease; moving bytes renews it."""
    source, target = HostKvMemory(LARGE, 16), HostKvMemory(LARGE, 16)
    monkeypatch.setattr(moving, "_STOP_BYTES", 1 << 16)

    def slowly(job):
        def run(self):
            for _ in range(8):
                time.sleep(0.06)
                self.moved_bytes += 1
            job.run(self)

        return type(job.__name__, (job,), {"run": run})

    async with open_pair(names, names, source=source, target=target) as (a, b, _, _):
        monkeypatch.setattr("tokenmill.serve.transfer.pull.MapJob", slowly(moving.MapJob))
        monkeypatch.setattr("tokenmill.serve.transfer.sender.SendJob", slowly(moving.SendJob))
        ends = Ends()
        export = a.export(list(range(16)), 256, lease_s=0.25, on_released=ends)
        export.seal(b"m")
        assert await b.pull(export.descriptor, list(range(16))) == b"m"
        assert await ends.wait() == [True]


async def test_a_lease_that_ended_during_the_copy_fails_the_pull(open_pair, monkeypatch):
    """The receiver goes on copying, without a sign of life, from blocks that the sender has reused."""
    source, target = HostKvMemory(LARGE, 32), HostKvMemory(LARGE, 32)
    freed = threading.Event()

    class Late(moving.MapJob):
        def run(self):
            freed.wait(10)
            super().run()

    async with open_pair(("shm",), ("shm",), source=source, target=target) as (a, b, _, _):
        monkeypatch.setattr("tokenmill.serve.transfer.pull.MapJob", Late)
        ends = []
        export = a.export(
            list(range(32)), 512, lease_s=0.1, on_released=lambda t: (ends.append(t), freed.set())
        )
        export.seal(b"m")
        with pytest.raises(HandoffFailed):
            await b.pull(export.descriptor, list(range(32)))
        assert ends == [False]


@pytest.mark.parametrize(
    ("names", "streams_from"),
    [(("shm",), 1), (("tcp",), 1), (("tcp",), 1 << 40)],
    ids=["shm", "tcp 2", "tcp 1"],
)
async def test_a_cancelled_pull_writes_no_more_and_gives_the_export_back(
    names, streams_from, open_pair, monkeypatch
):
    monkeypatch.setattr("tokenmill.serve.transfer.pull._PARALLEL_BYTES", streams_from)
    source, target = HostKvMemory(LARGE, 32), HostKvMemory(LARGE, 32)
    source.region[:] = b"\1" * source.size_bytes
    monkeypatch.setattr(moving, "_STOP_BYTES", 1 << 16)
    async with open_pair(names, names, source=source, target=target) as (a, b, _, _):
        for delay in (0, 0.001, 0.002, 0.004, 0.008):
            ends = Ends()
            export = a.export(list(range(32)), 512, lease_s=30, on_released=ends)
            export.advance(500)
            pull = asyncio.create_task(b.pull(export.descriptor, list(range(32))))
            await asyncio.sleep(delay)
            pull.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pull
            target.region[:] = bytes(target.size_bytes)
            await asyncio.sleep(0.02)
            assert not any(np.frombuffer(target.region, np.uint8))
            if not ends:  # it never reached the sender
                export.withdraw("test")
            assert await ends.wait() == [False]


@each_single
async def test_nothing_arriving_fails_the_pull(names, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        ends = Ends()
        export = a.export([0, 1], 32, lease_s=5, on_released=ends)
        export.advance(3)
        with pytest.raises(HandoffFailed, match="nothing arrived"):
            await b.pull(export.descriptor, [0, 1], idle_timeout_s=0.1)
        assert await ends.wait() == [False]


@each_single
async def test_only_one_receiver_may_take_an_export(names, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        export = a.export([0], 16, lease_s=5, on_released=Ends())
        first = asyncio.create_task(b.pull(export.descriptor, [0]))
        await asyncio.sleep(0.02)
        with pytest.raises(HandoffFailed, match="another receiver"):
            await b.pull(export.descriptor, [1])
        export.seal(b"m")
        assert await first == b"m"


@each_single
async def test_a_wrong_token_is_refused(names, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        ends = Ends()
        export = a.export([0], 16, lease_s=5, on_released=ends)
        export.seal(b"m")
        forged = msgspec.structs.replace(control.decode_ticket(export.descriptor), token=bytes(16))
        with pytest.raises(HandoffFailed, match="refused"):
            await b.pull(control.encode_ticket(forged), [0])
        assert not ends
        assert await b.pull(export.descriptor, [0]) == b"m"


@each_single
async def test_many_pulls_at_once(names, open_pair, fill, tokens_of):
    async with open_pair(names, names) as (a, b, source, target):
        fill(source)
        ends = Ends()
        exports = [a.export([n], 16, lease_s=5, on_released=ends) for n in range(64)]
        pulls = [b.pull(export.descriptor, [63 - n]) for n, export in enumerate(exports)]
        for n, export in enumerate(exports):
            export.seal(str(n).encode())
        metas = await asyncio.gather(*pulls)
        assert [int(meta) for meta in metas] == list(range(64))
        await settled()
        assert ends == [True] * 64
        for n in range(64):
            assert tokens_of(target, [63 - n], 0, 16) == tokens_of(source, [n], 0, 16)


@each_single
async def test_stop_withdraws_exports_and_fails_pulls(names, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        early, unread = Ends(), Ends()
        export = a.export([0], 16, lease_s=5, on_released=early)
        a.export([1], 16, lease_s=5, on_released=unread).seal(b"")
        pull = asyncio.create_task(b.pull(export.descriptor, [0]))
        await asyncio.sleep(0.02)
        await a.stop()
        assert early == unread == [False]
        with pytest.raises(HandoffFailed, match="shutting down"):
            await pull
        with pytest.raises(RuntimeError):
            a.export([0], 16, lease_s=5, on_released=early)


@each_single
async def test_stopping_the_receiver_fails_its_pulls_and_frees_the_exports(names, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        ends = Ends()
        export = a.export([0], 16, lease_s=5, on_released=ends)
        pull = asyncio.create_task(b.pull(export.descriptor, [0]))
        await asyncio.sleep(0.02)
        await b.stop()
        with pytest.raises(HandoffFailed, match="shutting down"):
            await pull
        assert await ends.wait() == [False]


async def test_a_sender_that_is_gone_cannot_be_reached(open_pair):
    async with open_pair() as (a, b, _, _):
        export = a.export([0], 16, lease_s=5, on_released=Ends())
        await a.stop()
        with pytest.raises(HandoffFailed, match=r"shm:.*tcp:"):
            await b.pull(export.descriptor, [0])


@pytest.mark.parametrize(
    ("sending", "receiving"),
    [(("shm", "tcp"), ("tcp",)), (("tcp",), ("shm", "tcp")), (("shm",), ("shm", "tcp"))],
)
async def test_one_way_in_common_is_enough(sending, receiving, open_pair, fill, tokens_of):
    async with open_pair(sending, receiving) as (a, b, source, target):
        fill(source)
        export = a.export([3], 16, lease_s=5, on_released=Ends())
        export.seal(b"m")
        assert await b.pull(export.descriptor, [5]) == b"m"
        assert tokens_of(target, [5], 0, 16) == tokens_of(source, [3], 0, 16)


@pytest.mark.parametrize(
    "elsewhere", [lambda here: "other-boot|@x", lambda here: f"{here}-not"], ids=["host", "network namespace"]
)
async def test_tcp_is_taken_when_the_sender_is_on_another(elsewhere, open_pair, fill, tokens_of):
    async with open_pair() as (a, b, source, target):
        fill(source)
        export = a.export([3], 16, lease_s=5, on_released=Ends())
        export.seal(b"m")
        ticket = control.decode_ticket(export.descriptor)
        shm, tcp = ticket.endpoints
        moved = msgspec.structs.replace(ticket, endpoints=[("shm", elsewhere(shm[1])), tcp])
        assert await b.pull(control.encode_ticket(moved), [5]) == b"m"
        assert tokens_of(target, [5], 0, 16) == tokens_of(source, [3], 0, 16)


async def test_no_way_in_common_is_said(open_pair):
    async with open_pair(("shm",), ("tcp",)) as (a, b, _, _):
        export = a.export([0], 16, lease_s=5, on_released=Ends())
        with pytest.raises(HandoffFailed, match="shm: not enabled here"):
            await b.pull(export.descriptor, [0])


async def test_the_memory_is_mapped_once_and_only_while_the_peer_lives(open_pair, mappings):
    async with open_pair(("shm",), ("shm",)) as (a, b, _, _):
        for _ in range(3):
            export = a.export([0], 16, lease_s=5, on_released=Ends())
            export.seal(b"")
            await b.pull(export.descriptor, [0])
            assert len(mappings()) == 3  # two memories of our own, one of them mapped once more
        await a.stop()
        await settled()
        assert len(mappings()) == 2


async def test_peers_cannot_write_the_senders_memory(open_pair, mappings):
    async with open_pair(("shm",), ("shm",)) as (a, b, _, _):
        export = a.export([0], 16, lease_s=5, on_released=Ends())
        export.seal(b"")
        await b.pull(export.descriptor, [0])
        assert sorted(line.split()[1] for line in mappings()) == ["r--s", "rw-s", "rw-s"]


def raw_connection(transport, driver):
    """Connect to a transport's control socket as a stranger would."""
    address = dict(transport._endpoints)[driver]
    if driver == "tcp":
        host, port = address.split("|")
        return socket.create_connection((host, int(port)))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect("\0" + address.split("|@")[1])
    return sock


@each_single
@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\3abc",
        bytes(64),
        control.encode_frame(control.Fetch(0, 1 << 60)),
        control.encode_frame(control.Released(valid=True)),
        control.encode_frame(control.Sealed(b"x")),
        b"\0\0",
    ],
)
async def test_garbage_ends_only_its_own_connection(names, garbage, open_pair):
    async with open_pair(names, names) as (a, b, _, _):
        with raw_connection(a, names[0]) as stranger:
            stranger.sendall(garbage)
            await asyncio.sleep(0.02)
        export = a.export([0], 16, lease_s=5, on_released=Ends())
        export.seal(b"m")
        assert await b.pull(export.descriptor, [0]) == b"m"


@each_single
async def test_a_reader_that_asks_for_more_than_is_ready_is_dropped(names, open_pair):
    async with open_pair(names, names) as (a, _, _, _):
        ends = Ends()
        export = a.export([0], 16, lease_s=5, on_released=ends)
        export.advance(4)
        ticket = control.decode_ticket(export.descriptor)
        with raw_connection(a, names[0]) as stranger:
            stranger.sendall(control.encode_frame(control.Open(ticket.export, ticket.token, need_fd=False)))
            stranger.sendall(control.encode_frame(control.Fetch(0, 5)))
            assert await ends.wait() == [False]


@each_single
async def test_a_silent_reader_is_dropped_when_the_lease_would_have_ended(names, open_pair):
    async with open_pair(names, names) as (a, _, _, _):
        ends = Ends()
        export = a.export([0], 16, lease_s=0.1, on_released=ends)
        ticket = control.decode_ticket(export.descriptor)
        with raw_connection(a, names[0]) as stranger:
            stranger.sendall(control.encode_frame(control.Open(ticket.export, ticket.token, need_fd=False)))
            assert await ends.wait() == [False]


@each_single
async def test_a_reader_that_does_not_read_is_dropped(names, open_pair):
    """It asks for megabytes and lets them pile up: the sender's thread must come free again."""
    source = HostKvMemory(LARGE, 64)
    async with open_pair(names, names, source=source) as (a, _, _, _):
        ends = Ends()
        export = a.export(list(range(64)), 1024, lease_s=0.2, on_released=ends)
        export.seal(b"")
        ticket = control.decode_ticket(export.descriptor)
        with raw_connection(a, names[0]) as stranger:
            stranger.sendall(control.encode_frame(control.Open(ticket.export, ticket.token, need_fd=False)))
            stranger.sendall(control.encode_frame(control.Fetch(0, 1024)))
            assert await ends.wait() == [False]


@each_single
async def test_connections_are_bounded(names, open_pair, monkeypatch):
    monkeypatch.setattr(sender, "_MAX_CONNECTIONS", 4)
    async with open_pair(names, names) as (a, b, _, _):
        with contextlib.ExitStack() as strangers:
            for _ in range(12):
                strangers.enter_context(raw_connection(a, names[0]))
            await asyncio.sleep(0.05)
            assert sum(channel.is_open for channel in a._running[0]._channels.values()) <= 4
            export = a.export([0], 16, lease_s=5, on_released=Ends())
            export.seal(b"m")
            assert await b.pull(export.descriptor, [0]) == b"m"


async def test_connections_that_open_nothing_are_closed(open_pair, monkeypatch):
    monkeypatch.setattr(sender, "_FIRST_OPEN_S", 0.05)
    async with open_pair(("tcp",), ("tcp",)) as (a, _, _, _):
        with raw_connection(a, "tcp") as stranger:
            stranger.setblocking(False)
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(stranger, 1) == b""


async def test_a_sender_that_does_not_answer_is_given_up(open_pair):
    async with open_pair(("tcp",), ("tcp",)) as (a, b, _, _):
        export = a.export([0], 16, lease_s=5, on_released=Ends())
        with socket.create_server(("127.0.0.1", 0)) as mute:
            ticket = control.decode_ticket(export.descriptor)
            moved = msgspec.structs.replace(ticket, endpoints=[("tcp", f"127.0.0.1|{mute.getsockname()[1]}")])
            with pytest.raises(HandoffFailed, match="did not answer"):
                await b.pull(control.encode_ticket(moved), [0], idle_timeout_s=0.1)


async def test_a_bad_call_is_the_callers_error(open_pair):
    async with open_pair() as (a, b, _, _):
        for blocks, tokens in (([0], 17), ([64], 1), ([], 1), ([0], 0)):
            with pytest.raises(ValueError):
                a.export(blocks, tokens, lease_s=1, on_released=print)
        export = a.export([0, 1], 32, lease_s=1, on_released=Ends())
        for blocks, first in (([0], 0), ([0, 64], 0), ([0, 1], 33)):
            with pytest.raises(ValueError):
                await b.pull(export.descriptor, blocks, from_token=first)


def test_unknown_names_are_the_users_error():
    def open_named(*names):
        return open_transport(names, host="127.0.0.1", run_dir=None, clock=SystemClock())

    with pytest.raises(ConfigError, match="unknown KV transport 'rdma': use one of shm, tcp"):
        open_named("shm", "rdma")
    with pytest.raises(ConfigError, match="at least one"):
        open_named()
    with pytest.raises(ConfigError, match="each once"):
        open_named("tcp", "tcp")
    assert open_named("tcp", "shm").name == "tcp+shm"


async def test_a_host_that_is_not_ours_is_the_users_error():
    transport = open_transport(["shm", "tcp"], host="192.0.2.1", run_dir=None, clock=SystemClock())
    memory = HostKvMemory(LAYOUT, 1)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
        await transport.start(memory)
    memory.close()


async def test_pulls_over_several_streams_reuse_their_connections(open_pair, fill, tokens_of, monkeypatch):
    monkeypatch.setattr("tokenmill.serve.transfer.pull._PARALLEL_BYTES", 1)
    async with open_pair(("tcp",), ("tcp",)) as (a, b, source, target):
        fill(source)
        for _ in range(3):
            ends = Ends()
            export = a.export([3, 9], 32, lease_s=5, on_released=ends)
            export.advance(20)
            pull = asyncio.create_task(b.pull(export.descriptor, [5, 0]))
            await asyncio.sleep(0.02)
            export.seal(b"m")
            assert await pull == b"m"
            assert await ends.wait() == [True]
            assert tokens_of(target, [5, 0], 0, 32) == tokens_of(source, [3, 9], 0, 32)
            assert len(a._running[0]._channels) == 2


async def test_a_helper_that_is_refused_fails_the_pull(open_pair, monkeypatch):
    monkeypatch.setattr("tokenmill.serve.transfer.pull._PARALLEL_BYTES", 1)
    refuse = control.Refused("no")
    monkeypatch.setattr(ExportTable, "_join", lambda table, event: [Send(event.connection, refuse)])
    async with open_pair(("tcp",), ("tcp",)) as (a, b, _, _):
        ends = Ends()
        export = a.export([3], 16, lease_s=5, on_released=ends)
        export.seal(b"m")
        with pytest.raises(HandoffFailed, match="further connection is refused"):
            await b.pull(export.descriptor, [5])
        assert await ends.wait() == [False]
