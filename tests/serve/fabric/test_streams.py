"""Streams over real sockets: both kinds, both event loops."""

from __future__ import annotations

import asyncio
import inspect
import random
import signal
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from tokenmill.errors import (
    ConfigError,
    DeadlineExceeded,
    NoWorker,
    Overloaded,
    ProtocolError,
    WorkerFailed,
    WorkerLost,
    WorkerStalled,
)
from tokenmill.serve.fabric.frames import Credit, Data, Hello, Open
from tokenmill.serve.fabric.streams import ServerStream, StreamConnection, StreamLimits, StreamServer

SMALL = StreamLimits(window=4, max_queued_items=8)


def both_loops(tests: type) -> type:
    """Run each test of a class on asyncio's event loop and on uvloop's."""
    for name, test in list(vars(tests).items()):
        if inspect.iscoroutinefunction(test):
            setattr(tests, name, _on_both_loops(test))
    return tests


def _on_both_loops(test: Callable[..., Any]) -> Callable[..., None]:
    def run(*arguments: Any, loop_factory: Any, **named: Any) -> None:
        # Not asyncio.Runner: it would forget the current loop that pytest-asyncio keeps for other tests.
        loop = loop_factory()
        try:
            loop.run_until_complete(test(*arguments, **named))
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

    loop_factory = inspect.Parameter("loop_factory", inspect.Parameter.KEYWORD_ONLY)
    signature = inspect.signature(test)
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), loop_factory])
    run.pytestmark = getattr(test, "pytestmark", [])
    factories = [asyncio.new_event_loop, uvloop.new_event_loop]
    return pytest.mark.parametrize("loop_factory", factories, ids=["asyncio", "uvloop"])(run)


def join(older: list[int], newer: list[int]) -> list[int] | None:
    return older + newer


def loop_reports() -> list[dict[str, Any]]:
    """What is reported through the loop's exception handler from now on."""
    found: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: found.append(context))
    return found


@both_loops
class TestItems:
    async def test_items_come_in_order_and_then_one_end(self, pair: Any) -> None:
        async with pair() as p:
            _, reader, served = await p.open_served("hello")
            assert served.call == "hello"
            for number in range(1000):
                served.send([number])
            served.end()
            assert await reader.wait() is None
            assert reader.items == [[number] for number in range(1000)]
            assert p.client.statistics().open_streams == 0
            assert p.server.statistics().open_streams == 0

    async def test_one_step_is_one_frame(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            readers = [p.open()[1] for _ in range(256)]
            await until(lambda: len(p.streams) == 256)
            before = p.server.statistics()
            for step in range(10):
                for served in p.streams:
                    served.send([step])
                p.server.flush()
            await until(lambda: all(len(reader.items) == 10 for reader in readers))
            assert p.server.statistics().frames_out - before.frames_out == 10
            assert p.server.statistics().items_out - before.items_out == 2560

    async def test_what_is_not_flushed_leaves_by_itself_in_one_frame(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            readers = [p.open()[1] for _ in range(8)]
            await until(lambda: len(p.streams) == 8)
            before = p.server.statistics().frames_out
            for served in p.streams:
                served.send([1])
                served.end()
            for reader in readers:
                assert await reader.wait() is None
                assert reader.items == [[1]]
            assert p.server.statistics().frames_out == before + 1

    async def test_opens_of_one_iteration_leave_in_one_write(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            for number in range(100):
                p.open(str(number))
            assert p.client.statistics().frames_out == 1  # Hello
            await until(lambda: len(p.streams) == 100)
            assert [served.call for served in p.streams] == [str(number) for number in range(100)]

    async def test_send_and_end_inside_on_open(self, pair: Any) -> None:
        def on_open(stream: ServerStream[str, list[int]]) -> None:
            stream.send([7])
            stream.end()

        async with pair(on_open=on_open) as p:
            _, reader = p.open()
            assert await reader.wait() is None
            assert reader.items == [[7]]

    async def test_send_after_end_is_a_bug_that_shows(self, pair: Any) -> None:
        async with pair() as p:
            _, reader, served = await p.open_served()
            served.end()
            served.end()
            with pytest.raises(RuntimeError, match="send after end"):
                served.send([1])
            assert await reader.wait() is None

    async def test_a_batch_above_the_frame_limit_is_split(self, pair: Any) -> None:
        async with pair(StreamLimits(max_frame_bytes=1000)) as p:
            _, reader, served = await p.open_served()
            sent = [list(range(1000, 1050)) for _ in range(50)]
            for item in sent:
                served.send(item)
            served.end()
            assert await reader.wait() is None
            assert reader.items == sent

    async def test_an_item_above_the_frame_limit_ends_its_own_stream(self, pair: Any) -> None:
        async with pair(StreamLimits(max_frame_bytes=1000)) as p:
            loop_reports()
            _, bad, served_bad = await p.open_served()
            _, good, served_good = await p.open_served()
            cancelled: list[int] = []
            served_bad.on_cancel = lambda: cancelled.append(1)
            served_good.send([1])
            served_bad.send(list(range(2000)))
            served_good.end()
            assert isinstance(await bad.wait(), WorkerFailed)
            assert await good.wait() is None
            assert good.items == [[1]]
            assert cancelled == [1]

    async def test_an_item_without_a_wire_form_ends_its_own_stream(self, pair: Any) -> None:
        async with pair() as p:
            reports = loop_reports()
            _, good, served_good = await p.open_served()
            _, bad, served_bad = await p.open_served()
            served_good.send([1])
            served_bad.send([object()])
            served_good.send([2])
            served_good.end()
            assert await good.wait() is None
            assert good.items == [[1], [2]]
            assert isinstance(await bad.wait(), WorkerFailed)
            assert "cannot be sent" in reports[0]["message"]

    async def test_a_call_above_the_frame_limit_ends_its_own_stream(self, pair: Any) -> None:
        async with pair(StreamLimits(max_frame_bytes=1000)) as p:
            _, bad = p.open("x" * 2000)
            assert bad.ends == []
            error = await bad.wait()
            assert isinstance(error, WorkerFailed)
            assert "max_frame_bytes" in error.message
            await p.open_served()


@both_loops
class TestCancel:
    async def test_the_server_hears_it_once_and_the_client_hears_nothing_more(
        self, pair: Any, until: Any
    ) -> None:
        async with pair() as p:
            stream, reader, served = await p.open_served()
            cancelled: list[int] = []
            served.on_cancel = lambda: cancelled.append(1)
            served.send([1])
            p.server.flush()
            stream.cancel()
            stream.cancel()
            await until(lambda: bool(cancelled))
            assert served.closed
            served.send([2])
            served.end()
            _, other, served_other = await p.open_served()
            served_other.end()
            assert await other.wait() is None
            assert reader.items == []
            assert reader.ends == []
            assert cancelled == [1]
            assert p.server.statistics().open_streams == 0

    async def test_from_inside_on_item(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            items: list[list[int]] = []
            ends: list[Any] = []

            def on_item(item: list[int]) -> None:
                items.append(item)
                stream.cancel()

            stream = p.client.open("call", on_item, ends.append)
            await until(lambda: bool(p.streams))
            for number in range(5):
                p.streams[0].send([number])
            p.streams[0].end()
            await until(lambda: bool(items))
            _, other, served_other = await p.open_served()
            served_other.end()
            await other.wait()
            assert items == [[0]]
            assert ends == []

    async def test_after_the_end_nothing_happens(self, pair: Any) -> None:
        async with pair() as p:
            stream, reader, served = await p.open_served()
            served.on_cancel = lambda: pytest.fail("it was not cancelled")
            served.end()
            await reader.wait()
            stream.cancel()
            _, other, served_other = await p.open_served()
            served_other.end()
            await other.wait()

    async def test_before_it_was_opened(self, pair: Any) -> None:
        async with pair(StreamLimits(max_streams=1)) as p:
            await p.open_served()
            stream, reader = p.open()
            stream.cancel()
            await asyncio.sleep(0)
            assert reader.ends == []

    async def test_an_on_cancel_that_raises_is_reported(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            reports = loop_reports()
            stream, _, served = await p.open_served()
            served.on_cancel = lambda: 1 / 0
            stream.cancel()
            await until(lambda: bool(reports))
            assert isinstance(reports[0]["exception"], ZeroDivisionError)
            await p.open_served()


@both_loops
class TestCredit:
    async def test_a_paused_stream_gets_one_window_and_the_rest_merged(self, pair: Any, until: Any) -> None:
        async with pair(SMALL, merge=join) as p:
            stream, reader, served = await p.open_served()
            stream.pause()
            for number in range(1000):
                served.send([number])
            served.end()
            await until(lambda: len(reader.items) == 4)
            _, other, served_other = await p.open_served()
            served_other.end()
            await other.wait()
            assert len(reader.items) == 4
            assert p.server.statistics().queued_items == 1
            assert p.client.statistics().paused_streams == 1
            stream.resume()
            assert await reader.wait() is None
            assert [number for item in reader.items for number in item] == list(range(1000))
            assert len(reader.items) == 5
            assert p.server.statistics().queued_items == 0

    async def test_without_merge_a_reader_too_far_behind_is_ended(self, pair: Any) -> None:
        async with pair(SMALL) as p:
            stream, reader, served = await p.open_served()
            cancelled: list[int] = []
            served.on_cancel = lambda: cancelled.append(1)
            stream.pause()
            for number in range(100):
                served.send([number])
            assert served.closed
            assert cancelled == [1]
            error = await reader.wait()
            assert isinstance(error, WorkerFailed)
            assert "max_queued_items" in error.message
            statistics = p.server.statistics()
            assert statistics.queued_items == 0
            assert statistics.queued_items_peak == 8
            assert statistics.overflows == 1

    async def test_merge_may_refuse(self, pair: Any) -> None:
        async with pair(SMALL, merge=lambda older, newer: None) as p:
            stream, reader, served = await p.open_served()
            stream.pause()
            for number in range(12):
                served.send([number])
            served.end()
            stream.resume()
            assert await reader.wait() is None
            assert reader.items == [[number] for number in range(12)]

    async def test_a_paused_stream_does_not_hold_up_others(self, pair: Any) -> None:
        async with pair(SMALL, merge=join) as p:
            stream, _, served = await p.open_served()
            stream.pause()
            _, other, served_other = await p.open_served()
            for number in range(100):
                served.send([number])
                served_other.send([number])
            served_other.end()
            assert await other.wait() is None
            assert sum(len(item) for item in other.items) == 100

    async def test_a_peer_that_does_not_read_is_owed_a_bounded_amount(
        self, address: str, raw_client: Any, until: Any
    ) -> None:
        """Credit in plenty, but the socket is full: items wait merged, not in the transport's buffer."""
        streams: list[ServerStream[str, list[int]]] = []
        server = StreamServer[str, list[int]](str, list[int], streams.append, merge=lambda old, new: new)
        bound = await server.start(address)
        async with raw_client(bound) as peer:
            peer.writer.transport.pause_reading()
            peer.hello(window=2**30)
            peer.say(*(Open(number, "call") for number in range(1, 11)))
            await until(lambda: len(streams) == 10)
            item = list(range(1000))
            for _ in range(2000):
                for stream in streams:
                    stream.send(item)
                server.flush()
                await asyncio.sleep(0)
            statistics = server.statistics()
            assert statistics.queued_items == 10
            assert statistics.bytes_out < 20_000_000 < 2000 * 10 * 1000 * 2.5
            assert not any(stream.closed for stream in streams)
        await server.close(0)

    @pytest.mark.parametrize("seed", range(3))
    async def test_random_pauses_and_cancels_lose_and_double_nothing(self, pair: Any, seed: int) -> None:
        chance = random.Random(seed)
        async with pair(StreamLimits(window=3, max_queued_items=4), merge=join) as p:
            opened = [await p.open_served() for _ in range(12)]
            sent = [0] * 12
            for _ in range(300):
                number = chance.randrange(12)
                stream, _, served = opened[number]
                act = chance.choice([stream.pause, stream.resume, "send", "send", "send", "flush", "wait"])
                if act == "send":
                    served.send([sent[number]])
                    sent[number] += 1
                elif act == "flush":
                    p.server.flush()
                elif act == "wait":
                    await asyncio.sleep(0.001)
                else:
                    act()
            for stream, _, served in opened[:3]:
                stream.cancel()
                served.end()
            for number, (stream, reader, served) in list(enumerate(opened))[3:]:
                served.end()
                stream.resume()
                assert await reader.wait() is None
                assert [token for item in reader.items for token in item] == list(range(sent[number]))
            assert p.server.statistics().queued_items == 0


@both_loops
class TestFailures:
    async def test_a_handler_that_raises_ends_only_its_stream(self, pair: Any) -> None:
        def on_open(stream: ServerStream[str, list[int]]) -> None:
            if stream.call == "bad":
                raise KeyError("oops")
            stream.end()

        async with pair(on_open=on_open) as p:
            reports = loop_reports()
            _, bad = p.open("bad")
            _, good = p.open("good")
            error = await bad.wait()
            assert isinstance(error, WorkerFailed)
            assert "oops" in error.message
            assert await good.wait() is None
            assert isinstance(reports[0]["exception"], KeyError)

    @pytest.mark.parametrize(
        ("raised", "heard"),
        [
            (Overloaded("too many requests wait", retry_after_s=3), Overloaded),
            (WorkerLost("draining"), WorkerLost),
            (NoWorker("no engine"), WorkerFailed),
        ],
    )
    async def test_a_handler_may_refuse(self, pair: Any, raised: Exception, heard: type) -> None:
        def on_open(stream: ServerStream[str, list[int]]) -> None:
            raise raised

        async with pair(on_open=on_open) as p:
            reports = loop_reports()
            _, reader = p.open()
            error = await reader.wait()
            assert type(error) is heard
            assert error.message == str(raised)
            assert reports == []

    async def test_a_reader_that_raises_ends_only_its_stream(
        self, pair: Any, reader: Any, until: Any
    ) -> None:
        async with pair() as p:
            reports = loop_reports()
            bad = reader()
            p.client.open("bad", lambda item: 1 / 0, bad.on_end)
            await until(lambda: bool(p.streams))
            _, good, served_good = await p.open_served()
            cancelled = asyncio.Event()
            p.streams[0].on_cancel = cancelled.set
            for served in p.streams:
                served.send([1])
                served.send([2])
            served_good.end()
            error = await bad.wait()
            assert isinstance(error, WorkerFailed)
            assert isinstance(error.__cause__, ZeroDivisionError)
            assert await good.wait() is None
            assert good.items == [[1], [2]]
            assert len(reports) == 1
            async with asyncio.timeout(5):
                await cancelled.wait()

    async def test_an_on_end_that_raises_is_reported(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            reports = loop_reports()
            p.client.open("bad", lambda item: None, lambda error: 1 / 0)
            await until(lambda: bool(p.streams))
            p.streams[0].end()
            await until(lambda: bool(reports))
            _, good, served_good = await p.open_served()
            served_good.end()
            assert await good.wait() is None

    async def test_too_many_streams_are_refused_on_both_sides(self, pair: Any) -> None:
        async with pair(StreamLimits(max_streams=2), client_limits=StreamLimits(max_streams=3)) as p:
            await p.open_served()
            _, first, served = await p.open_served()
            _, by_server = p.open()
            _, by_client = p.open()
            for refused in (by_server, by_client):
                error = await refused.wait()
                assert isinstance(error, Overloaded)
                assert "max_streams" in error.message
            served.end()
            await first.wait()
            await p.open_served()

    async def test_too_many_connections_are_refused(self, pair: Any) -> None:
        async with pair(StreamLimits(max_connections=1)) as p:
            with pytest.raises(WorkerLost, match="max_connections"):
                await StreamConnection.connect(_address(p), str, list[int])
            await p.open_served()


@both_loops
class TestEnds:
    async def test_close_gives_streams_time_to_end(self, pair: Any) -> None:
        async with pair() as p:
            _, reader, served = await p.open_served()
            closing = asyncio.create_task(p.server.close(5.0))
            while not p.client.going_away:
                await asyncio.sleep(0.001)
            _, refused = p.open()
            assert isinstance(await refused.wait(), WorkerLost)
            served.send([1])
            served.end()
            async with asyncio.timeout(4):
                await closing
            assert await reader.wait() is None
            assert reader.items == [[1]]

    async def test_close_cancels_what_does_not_end(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            _, reader, served = await p.open_served()
            cancelled: list[int] = []
            served.on_cancel = lambda: cancelled.append(1)
            await p.server.close(0.05)
            assert cancelled == [1]
            assert isinstance(await reader.wait(), WorkerLost)
            await until(lambda: bool(p.lost))
            assert len(p.lost) == 1
            assert p.client.closed

    async def test_the_client_closes(self, pair: Any, until: Any) -> None:
        async with pair() as p:
            _, reader, served = await p.open_served()
            cancelled: list[int] = []
            served.on_cancel = lambda: cancelled.append(1)
            await p.client.close()
            await p.client.close()
            assert isinstance(await reader.wait(), WorkerLost)
            await until(lambda: bool(cancelled))
            assert p.lost == []
            _, late = p.open()
            assert isinstance(await late.wait(), WorkerLost)
            assert p.server.statistics().connections == 0

    async def test_a_server_that_never_started_closes(self) -> None:
        await StreamServer[str, int](str, int, lambda stream: None).close()

    async def test_a_live_address_is_not_taken_over(self, pair: Any) -> None:
        async with pair() as p:
            other = StreamServer[str, int](str, int, lambda stream: None)
            with pytest.raises(ConfigError, match="in use"):
                await other.start(_address(p))
            await p.open_served()

    async def test_a_missing_server(self, tmp_path: Any) -> None:
        for address in (f"unix:{tmp_path}/none", "tcp://127.0.0.1:1"):
            with pytest.raises(WorkerLost, match="cannot connect"):
                await StreamConnection.connect(address, str, int)


def _address(p: Any) -> str:
    return p.client.address


@pytest.mark.processes
@both_loops
class TestProcesses:
    async def test_a_killed_server_ends_every_stream(
        self, address: str, peer_process: Any, reader: Any, until: Any
    ) -> None:
        lost: list[Exception] = []
        async with peer_process("serve", address) as peer:
            client = await StreamConnection[str, list[int]].connect(
                await peer.line(), str, list[int], on_lost=lost.append
            )
            readers = [reader() for _ in range(20)]
            for each in readers:
                client.open("call", each.items.append, each.on_end)
            await until(lambda: all(each.items for each in readers))
            peer.signal(signal.SIGKILL)
            for each in readers:
                assert isinstance(await each.wait(), WorkerLost)
            await until(lambda: bool(lost))
            assert len(lost) == 1
            assert client.closed
            await client.close()

    async def test_a_killed_client_cancels_its_streams(
        self, address: str, peer_process: Any, until: Any
    ) -> None:
        cancelled: list[str] = []

        def on_open(stream: ServerStream[str, list[int]]) -> None:
            stream.on_cancel = lambda: cancelled.append(stream.call)

        server = StreamServer[str, list[int]](str, list[int], on_open)
        async with peer_process("call", await server.start(address), "7") as peer:
            assert await peer.line() == "open"
            await until(lambda: server.statistics().open_streams == 7)
            peer.signal(signal.SIGKILL)
            await until(lambda: len(cancelled) == 7)
            assert sorted(cancelled) == [str(number) for number in range(7)]
            assert server.statistics().connections == 0
        await server.close(0)

    async def test_a_frozen_server_is_noticed(self, address: str, peer_process: Any, reader: Any) -> None:
        lost: list[Exception] = []
        async with peer_process("serve", address) as peer:
            client = await StreamConnection[str, list[int]].connect(
                await peer.line(), str, list[int], on_lost=lost.append, limits=StreamLimits(silence_s=0.4)
            )
            heard = reader()
            client.open("call", heard.items.append, heard.on_end)
            await asyncio.sleep(0.8)
            assert heard.ends == [], "a live server answers pings"
            peer.signal(signal.SIGSTOP)
            error = await heard.wait()
            assert isinstance(error, WorkerStalled)
            assert "nothing was heard" in error.message
            assert [type(each) for each in lost] == [WorkerStalled]
            peer.signal(signal.SIGCONT)
            await client.close()

    async def test_a_peer_that_is_given_up_is_lost_to_all_that_is_open(
        self, address: str, peer_process: Any, reader: Any
    ) -> None:
        lost: list[Exception] = []
        async with peer_process("serve", address) as peer:
            client = await StreamConnection[str, list[int]].connect(
                await peer.line(), str, list[int], on_lost=lost.append, peer="worker 7"
            )
            heard = reader()
            client.open("call", heard.items.append, heard.on_end)
            error = WorkerStalled("it stands still")
            client.give_up(error)
            ended = await heard.wait()
            assert (type(ended), ended.message) == (WorkerStalled, "worker 7: it stands still")
            assert lost == [error]
            await client.close()


@both_loops
class TestBadPeers:
    async def test_connect_to_silence(self, raw_server: Any) -> None:
        async def silent(peer: Any) -> None:
            await asyncio.sleep(60)

        async with raw_server(silent) as address:
            with pytest.raises(DeadlineExceeded):
                await StreamConnection.connect(address, str, int, connect_timeout_s=0.1)
            with pytest.raises(WorkerLost, match="Hello"):
                await StreamConnection.connect(address, str, int, limits=StreamLimits(handshake_s=0.1))

    async def test_connect_to_something_else(self, raw_server: Any) -> None:
        async def http(peer: Any) -> None:
            peer.writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await peer.hear()

        async with raw_server(http) as address:
            with pytest.raises(ProtocolError, match="max_frame_bytes"):
                await StreamConnection.connect(address, str, int)

    async def test_connect_cancelled(self, raw_server: Any) -> None:
        async def silent(peer: Any) -> None:
            await asyncio.sleep(60)

        async with raw_server(silent) as address:
            connecting = asyncio.create_task(StreamConnection.connect(address, str, int))
            await asyncio.sleep(0.05)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting

    async def test_the_client_tells_another_version(self, raw_server: Any) -> None:
        async def newer(peer: Any) -> None:
            peer.hello(version=99)
            await peer.hear()

        async with raw_server(newer) as address:
            with pytest.raises(ProtocolError, match=r"version 99 of the fabric, this side 1: run the same"):
                await StreamConnection.connect(address, str, int)

    async def test_the_server_tells_another_version(self, address: str, raw_client: Any, until: Any) -> None:
        faults: list[ProtocolError] = []
        server = StreamServer[str, int](str, int, lambda stream: None, on_fault=faults.append)
        async with raw_client(await server.start(address)) as peer:
            peer.hello(version=99)
            await until(lambda: bool(faults))
            assert "version 99" in faults[0].message
            heard = await peer.hear()
            assert heard[0].version == 1
            assert await peer.hear() == []
        await server.close(0)

    @pytest.mark.parametrize(
        "bad",
        [
            "garbage",
            "open before hello",
            "hello twice",
            "open twice",
            "data from a client",
            "credit of nothing",
        ],
    )
    async def test_a_bad_client_loses_only_its_own_connection(
        self, pair: Any, raw_client: Any, until: Any, bad: str
    ) -> None:
        faults: list[ProtocolError] = []
        async with pair(on_fault=faults.append) as p, raw_client(_address(p)) as peer:
            _, reader, served = await p.open_served()
            hello = Hello(1)
            match bad:
                case "garbage":
                    peer.writer.write(random.Random(1).randbytes(10000))
                case "open before hello":
                    peer.say(Open(1, "call"))
                case "hello twice":
                    peer.say(hello, hello)
                case "open twice":
                    peer.say(hello, Open(5, "call"), Open(5, "call"))
                case "data from a client":
                    peer.say(hello, Data([], []))
                case "credit of nothing":
                    peer.say(hello, Credit(1, 0))
            await until(lambda: bool(faults))
            while await peer.hear():
                pass
            statistics = p.server.statistics()
            assert (statistics.protocol_errors, statistics.connections) == (1, 1)
            assert statistics.open_streams == 1
            served.end()
            assert await reader.wait() is None

    async def test_a_client_without_hello_is_closed(self, address: str, raw_client: Any) -> None:
        server = StreamServer[str, int](str, int, lambda stream: None, limits=StreamLimits(handshake_s=0.05))
        async with raw_client(await server.start(address)) as peer:
            await peer.hear()
            assert await peer.hear() == []
        await server.close(0)

    async def test_a_silent_client_is_closed(self, address: str, raw_client: Any, until: Any) -> None:
        server = StreamServer[str, int](str, int, lambda stream: None, limits=StreamLimits(silence_s=0.2))
        async with raw_client(await server.start(address)) as peer:
            peer.hello()
            await until(lambda: server.statistics().connections == 1)
            await until(lambda: server.statistics().connections == 0)
        await server.close(0)

    @pytest.mark.parametrize("bad", ["items above credit", "unknown stream", "open from a server", "garbage"])
    async def test_a_bad_server_ends_the_streams(self, raw_server: Any, reader: Any, bad: str) -> None:
        async def misbehave(peer: Any) -> None:
            peer.hello()
            while not any(isinstance(frame, Open) for frame in await peer.hear()):
                pass
            match bad:
                case "items above credit":
                    peer.say(Data([(1, [0])] * 9, []))
                case "unknown stream":
                    peer.say(Data([(1, [0]), (77, [0])], []))
                case "open from a server":
                    peer.say(Open(1, "call"))
                case "garbage":
                    peer.writer.write(b"\x05\x00\x00\x00hello")
            await peer.hear()

        lost: list[Exception] = []
        async with raw_server(misbehave) as address:
            client = await StreamConnection[str, list[int]].connect(
                address, str, list[int], on_lost=lost.append, limits=StreamLimits(window=8)
            )
            heard = reader()
            stream = client.open("call", heard.items.append, heard.on_end)
            stream.pause()
            error = await heard.wait()
            assert isinstance(error, WorkerLost)
            assert isinstance(error.__cause__, ProtocolError)
            assert [type(each) for each in lost] == [ProtocolError]
            await client.close()

    async def test_a_server_that_takes_nothing_is_offered_a_bounded_amount(
        self, raw_server: Any, reader: Any
    ) -> None:
        async def deaf(peer: Any) -> None:
            peer.writer.transport.pause_reading()
            peer.hello()
            await asyncio.sleep(60)

        async with raw_server(deaf) as address:
            limits = StreamLimits(max_backlog_bytes=2_000_000)
            client = await StreamConnection[str, list[int]].connect(address, str, list[int], limits=limits)
            readers = [reader() for _ in range(200)]
            for each in readers:
                client.open("x" * 100_000, each.items.append, each.on_end)
                await asyncio.sleep(0)
            refused = [each for each in readers if each.ends]
            assert refused
            assert all(isinstance(each.ends[0], Overloaded) for each in refused)
            assert client.statistics().backlog_bytes < 2_000_000
            await client.close()


@both_loops
class TestSocketFiles:
    async def test_a_stale_socket_file_is_replaced_and_removed(self, tmp_path: Any) -> None:
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(path))
        server = StreamServer[str, int](str, int, lambda stream: None)
        await server.start(f"unix:{path}")
        assert path.stat().st_mode & 0o777 == 0o600
        await server.close(0)
        assert not path.exists()

    async def test_a_file_that_is_no_socket_is_left_alone(self, tmp_path: Any) -> None:
        path = tmp_path / "s"
        path.write_text("precious")
        with pytest.raises(ConfigError, match="in use"):
            await StreamServer[str, int](str, int, lambda stream: None).start(f"unix:{path}")
        assert path.read_text() == "precious"


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="window"):
        StreamLimits(window=0)
