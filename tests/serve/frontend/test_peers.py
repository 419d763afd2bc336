"""Frontends that tell each other what they route, with routers that only note it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from tests.waiting import until

from tokenmill.clock import SystemClock
from tokenmill.protocol.frontends import FRONTENDS_PREFIX, FrontendCard, FrontendId, Notes
from tokenmill.protocol.ids import BlockHash, RequestId, WorkerId
from tokenmill.protocol.router_sync import EndedNote, PredictedNote, RouteNote, SentNote
from tokenmill.serve.fabric.registry import Registry, open_registry
from tokenmill.serve.frontend.peer_link import PeerCounts, PeerLink
from tokenmill.serve.frontend.peers import MAX_WAITING_NAMES, MAX_WAITING_NOTES, Peers, merge_notes


class NotingRouter:
    def __init__(self) -> None:
        self.send_notes = False
        self.news: list[RouteNote] = []
        self.heard: list[tuple[str, RouteNote]] = []
        self.gone: list[str] = []

    def drain_notes(self) -> list[RouteNote]:
        news, self.news = self.news, []
        return news

    def peer_said(self, peer: str, notes: list[RouteNote], now: float) -> None:
        self.heard += [(peer, note) for note in notes]

    def peer_gone(self, peer: str) -> None:
        self.gone.append(peer)


def sent(number: int) -> SentNote:
    return SentNote(WorkerId("w"), RequestId(f"r{number}"), 10, 20)


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    made = open_registry("memory:")
    await made.start()
    yield made
    await made.stop()


class Front:
    def __init__(self, registry: Registry, name: str, folder: Path) -> None:
        self.router = NotingRouter()
        self.address = f"unix:{folder / name}.sock"
        self.peers = Peers(
            registry, self.router, SystemClock(), frontend_id=FrontendId(name), interval_s=0.005, ttl_s=5.0
        )

    def connected(self) -> set[str]:
        return {link.card.frontend_id for link in self.peers.links() if link.connected}

    def does(self, *notes: RouteNote) -> None:
        if self.router.send_notes:
            self.router.news += notes
        self.peers.routed()


@pytest.fixture
def front(registry: Registry, tmp_path: Path):
    @asynccontextmanager
    async def make(name: str) -> AsyncIterator[Front]:
        made = Front(registry, name, tmp_path)
        try:
            await made.peers.start(made.address)
            card = FrontendCard(frontend_id=FrontendId(name), address=made.peers.address)
            await made.peers.announce(card)
            yield made
        finally:
            await made.peers.close()

    return make


async def test_what_one_does_all_others_hear_in_order(front) -> None:
    async with front("a") as a, front("b") as b, front("c") as c:
        everyone = {"a", "b", "c"}
        for each in (a, b, c):
            await until(lambda each=each: len(each.peers._listeners) == 2)
            assert each.connected() == everyone - {each.peers.frontend_id}
        a.does(sent(1), PredictedNote(WorkerId("w"), [BlockHash(7)]))
        a.does(EndedNote(WorkerId("w"), RequestId("r1")))
        expected = [
            ("a", sent(1)),
            ("a", PredictedNote(WorkerId("w"), [BlockHash(7)])),
            ("a", EndedNote(WorkerId("w"), RequestId("r1"))),
        ]
        for each in (b, c):
            await until(lambda each=each: each.router.heard == expected)
            assert each.peers.counts.notes_received == 3
        assert a.router.heard == []
        assert a.peers.counts.notes_sent == 6
        assert sum(b.peers.counts.lag.counts) >= 1


async def test_a_burst_leaves_in_few_messages(front) -> None:
    async with front("a") as a, front("b") as b:
        await until(lambda: a.peers._listeners)
        for number in range(100):
            a.does(sent(number))
        await until(lambda: len(b.router.heard) == 100)
        assert sum(b.peers.counts.lag.counts) <= 3


async def test_alone_nothing_is_sent_and_a_late_peer_hears_only_what_is_new(front) -> None:
    async with front("a") as a:
        a.does(sent(1))
        assert a.peers._timer is None
        async with front("b") as b:
            await until(lambda: a.peers._listeners)
            a.does(sent(2))
            await until(lambda: b.router.heard)
            assert b.router.heard == [("a", sent(2))]
        await until(lambda: not a.router.send_notes)


async def test_a_peer_that_leaves_is_forgotten_and_one_that_comes_is_found(front) -> None:
    async with front("a") as a:
        for _ in range(2):
            async with front("b"):
                await until(lambda: a.connected() == {"b"})
            await until(lambda: not list(a.peers.links()))
        assert a.router.gone == ["b", "b"]
        assert not a.peers._listeners


async def test_a_card_that_lies_is_tried_until_it_goes(registry: Registry, front, tmp_path: Path) -> None:
    async with front("a") as a:
        card = FrontendCard(frontend_id=FrontendId("ghost"), address=f"unix:{tmp_path}/nobody.sock")
        await registry.put(FRONTENDS_PREFIX + "ghost", msgspec.json.encode(card))
        await registry.put(FRONTENDS_PREFIX + "odd", b"{")
        await until(lambda: list(a.peers.links()))
        async with front("b"):
            await until(lambda: a.connected() == {"b"})
        await registry.delete(FRONTENDS_PREFIX + "ghost")
        await until(lambda: not list(a.peers.links()))


async def test_lost_notes_make_a_peers_requests_forgotten() -> None:
    router, counts = NotingRouter(), PeerCounts()
    card = FrontendCard(frontend_id=FrontendId("b"), address="unix:/nowhere")
    link = PeerLink(card, FrontendId("a"), router, SystemClock(), counts)
    link._on_notes(Notes(5, [sent(1)], 0.0))
    link._on_notes(Notes(6, [sent(2)], 0.0))
    assert router.gone == []
    link._on_notes(Notes(10, [sent(3)], 0.0))
    assert router.gone == ["b"]
    assert counts.notes_dropped == 3
    assert [note for _, note in router.heard] == [sent(1), sent(2), sent(3)]


def test_notes_that_wait_are_joined_up_to_a_bound() -> None:
    assert merge_notes(Notes(0, [sent(1)], 1.0), Notes(1, [sent(2)], 2.0)) == Notes(
        0, [sent(1), sent(2)], 1.0
    )
    assert merge_notes(Notes(0, [sent(1)], 1.0), Notes(2, [sent(2)], 2.0)) is None
    many = Notes(0, [sent(0)] * MAX_WAITING_NOTES, 1.0)
    assert merge_notes(many, Notes(MAX_WAITING_NOTES, [sent(1)], 2.0)) == Notes(
        MAX_WAITING_NOTES + 1, [], 2.0
    )
    wide = Notes(0, [PredictedNote(WorkerId("w"), [BlockHash(1)] * MAX_WAITING_NAMES)], 1.0)
    wider = Notes(1, [PredictedNote(WorkerId("w"), [BlockHash(1)])], 2.0)
    assert merge_notes(wide, wider) == Notes(2, [], 2.0)
