"""The thread that lends out and fetches blocks, between two memories of one process."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest

from tokenmill.clock import SystemClock
from tokenmill.errors import ConfigError
from tokenmill.serve.engines.vllm.connector import mover as module
from tokenmill.serve.engines.vllm.connector.cache import CacheGroup
from tokenmill.serve.engines.vllm.connector.giving import Giving
from tokenmill.serve.engines.vllm.connector.mover import Mover, Results
from tokenmill.serve.engines.vllm.connector.offers import to_params
from tokenmill.serve.engines.vllm.connector.orders import Give, Orders, Take
from tokenmill.serve.engines.vllm.connector.taking import Place, Taking
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.serve.transfer.memory import HostKvMemory

LAYOUT = KvLayout(planes=3, block_tokens=1, token_bytes=1024, dtype="bytes")
GROUPS = [CacheGroup(32), CacheGroup(32, 64)]
PROMPT = 150
THEIRS = [[1, 2, 3, 4, 5], [0, 0, 13, 14, 15]]
OURS = [[21, 22, 23, 24, 25], [0, 0, 33, 34, 35]]


class Side:
    """A worker with its memory, and what it told."""

    def __init__(self, names: list[str], lease_s: float) -> None:
        self.memory = HostKvMemory(LAYOUT, 40)
        noise = random.Random(id(self))
        self.memory.region[:] = noise.randbytes(len(self.memory.region))
        self.told: list[str] = []
        transport = open_transport(names, host="127.0.0.1", run_dir=None, clock=SystemClock())
        self.mover = Mover(self.memory, transport, rank=0, lease_s=lease_s, tell=self.told.append)
        self.ticket = self.mover.start()
        self.results = Results()

    def look(self, finished: tuple[str, ...] = ()) -> Results:
        """All that has ended so far."""
        new = self.mover.results(finished)
        self.results.sent |= new.sent
        self.results.received |= new.received
        self.results.failed |= new.failed
        return self.results

    def wait(self, done: Callable[[Results], object]) -> Results:
        deadline = time.monotonic() + 20
        while not done(self.look()):
            assert time.monotonic() < deadline, (self.results, self.told)
            time.sleep(0.001)
        return self.results

    def pages(self, tables: list[list[int]]) -> list[bytes]:
        return [
            self.memory.read(plane, block, 1)
            for table in tables
            for block in table
            if block
            for plane in range(LAYOUT.planes)
        ]

    def close(self) -> None:
        self.mover.stop()
        self.memory.close()


@pytest.fixture
def sides() -> Iterator[Callable[..., tuple[Side, Side]]]:
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:

        def make(*names: str, lease_s: float = 20.0) -> tuple[Side, Side]:
            both = [Side(list(names) or ["shm", "tcp"], lease_s) for _ in range(2)]
            for side in both:
                stack.callback(side.close)
            return both[0], both[1]

        yield make
    assert threading.active_count() == threads


def declared(giver: Side, request_id: str = "p") -> tuple[Give, Orders]:
    """A give for one side, and the orders of the other that take it."""
    giving, taking, orders = Giving(GROUPS, lease_s=20.0), Taking(GROUPS), Orders()
    give = giving.declare(request_id, PROMPT, THEIRS)
    offer = giving.offer(request_id, "f", [giver.ticket])
    assert give is not None
    assert offer is not None
    taking.arrived("d", PROMPT, to_params(offer), fingerprint="f", ranks=1)
    tables = [[Place(block, filled=False) for block in table] for table in OURS]
    taking.allocated("d", PROMPT - 1, tables, orders)
    return give, orders


@pytest.mark.parametrize("names", [["shm"], ["tcp"]], ids=["shm", "tcp"])
def test_blocks_of_all_groups_arrive(sides, names) -> None:
    giver, taker = sides(*names)
    give, orders = declared(giver)
    giver.mover.give([give])
    taker.mover.take(orders)
    taker.wait(lambda results: results.received)
    assert taker.results == Results(received={"d"})
    assert taker.pages(OURS) == giver.pages(THEIRS)
    assert not taker.told


def test_blocks_come_back_once_the_engine_keeps_them(sides) -> None:
    giver, taker = sides()
    give, orders = declared(giver)
    giver.mover.give([give])
    taker.mover.take(orders)
    taker.wait(lambda results: results.received)
    giver.wait(lambda _: giver.mover._given["p"].left == 0)
    assert not giver.results.sent  # vLLM would not know it yet
    assert giver.look(("p",)).sent == {"p"}
    assert giver.look(("p",)) == Results(sent={"p"})
    assert not giver.mover._given


def test_a_taker_that_does_not_come_costs_a_lease(sides) -> None:
    giver, _ = sides(lease_s=0.1)
    give, _ = declared(giver)
    giver.mover.give([give])
    giver.look(("p",))
    assert giver.wait(lambda results: results.sent).sent == {"p"}


def test_what_is_withdrawn_is_never_reported(sides) -> None:
    giver, taker = sides()
    give, orders = declared(giver)
    giver.mover.give([give])
    giver.mover.take(Orders(withdrawn=["p", "never seen"]))
    assert giver.look(("p",)) == Results()
    taker.mover.take(orders)
    assert taker.wait(lambda results: results.received).failed == {"d"}
    assert "given up" in taker.told[0]


def test_a_request_computed_again_is_lent_anew(sides) -> None:
    giver, _ = sides()
    giving = Giving(GROUPS, lease_s=20.0)
    first, second = (giving.declare("p", PROMPT, THEIRS) for _ in range(2))
    assert first is not None
    assert second is not None
    giver.mover.give([first])
    giver.mover.give([second])
    giver.look(("p",))
    assert giver.look().sent == set()
    giver.mover.stop()
    assert giver.wait(lambda results: results.sent).sent == {"p"}


def test_a_dead_giver_is_told(sides) -> None:
    giver, taker = sides()
    give, orders = declared(giver)
    giver.mover.give([give])
    giver.mover.stop()
    taker.mover.take(orders)
    assert taker.wait(lambda results: results.received) == Results(received={"d"}, failed={"d"})
    assert "cannot be reached" in taker.told[0]


def test_an_offer_may_be_quicker_than_the_step_it_belongs_to(sides) -> None:
    giver, taker = sides()
    give, orders = declared(giver)
    taker.mover.take(orders)
    (sender, _) = giver.mover._transport._running
    giver.wait(lambda _: sender._channels)  # it has been asked, and has refused
    giver.mover.give([give])
    assert taker.wait(lambda results: results.received).failed == set()
    assert taker.pages(OURS) == giver.pages(THEIRS)


def test_an_offer_that_nobody_made_fails_soon(sides, monkeypatch) -> None:
    monkeypatch.setattr(module, "OUTRUN_S", 0.05)
    giver, taker = sides()
    _, orders = declared(giver)
    taker.mover.take(orders)
    assert taker.wait(lambda results: results.received).failed == {"d"}
    assert "no such export" in taker.told[0]


def test_a_silent_giver_is_given_up(sides, monkeypatch) -> None:
    monkeypatch.setattr(module, "IDLE_TIMEOUT_S", 0.2)
    giver, taker = sides("tcp")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1|{listener.getsockname()[1]}"
        giver.ticket = msgspec.structs.replace(giver.ticket, endpoints=[("tcp", address)])
        _, orders = declared(giver)
        taker.mover.take(orders)
        assert taker.wait(lambda results: results.received).failed == {"d"}
    assert "did not answer" in taker.told[0]


def test_a_request_that_is_dropped_ends_and_is_reported(sides) -> None:
    """Also where it is dropped in the same breath: vLLM keeps its blocks until it hears of them."""
    giver, taker = sides()
    give, orders = declared(giver)
    giver.mover.give([give])
    orders.dropped.append("d")
    taker.mover.take(orders)
    assert taker.wait(lambda results: results.received) == Results(received={"d"}, failed={"d"})
    assert "nobody wants it" in taker.told[0]


def test_what_cannot_work_is_reported_with_its_reason(sides) -> None:
    _, taker = sides()
    taker.mover.take(Orders(takes=[Take("d", problem="too bad")]))
    assert taker.wait(lambda results: results.received).failed == {"d"}
    assert taker.told == ["the handoff of d failed: too bad"]


def test_ranks_that_are_not_offered_are_reported(sides) -> None:
    _, taker = sides()
    taker.mover.take(Orders(takes=[Take("d", ())]))
    assert taker.wait(lambda results: results.received).failed == {"d"}


def test_a_release_is_not_reported_but_frees_the_giver(sides) -> None:
    giver, taker = sides()
    give, orders = declared(giver)
    giver.mover.give([give])
    giver.look(("p",))
    before = bytes(taker.memory.region)
    (take,) = orders.takes
    pulls = tuple(type(pull)(pull.descriptor, pull.blocks, len(pull.blocks)) for pull in take.ranks[0])
    taker.mover.take(Orders(takes=[Take("d", (pulls,), waited_for=False)]))
    assert giver.wait(lambda results: results.sent).sent == {"p"}
    assert taker.look() == Results()
    assert bytes(taker.memory.region) == before


def test_blocks_that_do_not_exist_are_back_at_once(sides) -> None:
    giver, _ = sides()
    giver.mover.give([Give("p", (((1, b"t" * 16), (1, 2)), ((2, b"t" * 16), (4000,))))])
    giver.look(("p",))
    assert giver.wait(lambda results: results.sent).sent == {"p"}
    assert "cannot be offered" in giver.told[0]


def test_blocks_are_not_read_before_the_device_has_written_them(sides) -> None:
    giver, taker = sides()
    give, orders = declared(giver)
    done = threading.Event()
    giver.mover.give([give], lambda: done.wait(20))
    taker.mover.take(orders)
    (sender, _) = giver.mover._transport._running
    giver.wait(lambda _: [entry.reader is None for entry in sender._table.entries.values()] == [False] * 2)
    assert taker.look() == Results()
    giver.memory.write(0, 1, b"z" * 1024)
    done.set()
    assert taker.wait(lambda results: results.received).failed == set()
    assert taker.pages(OURS) == giver.pages(THEIRS)


def test_a_transport_that_cannot_start_is_the_users_error() -> None:
    memory = HostKvMemory(LAYOUT, 4)
    transport = open_transport(["tcp"], host="203.0.113.7", run_dir=None, clock=SystemClock())
    mover = Mover(memory, transport, rank=0, lease_s=1.0, tell=print)
    with pytest.raises(ConfigError, match=r"203\.0\.113\.7"):
        mover.start()
    mover.stop()
    mover.stop()
    memory.close()
