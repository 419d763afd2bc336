"""From one engine's block tables to another's: what is offered, what is fetched, and what is refused."""

import json
from dataclasses import replace

import msgspec
import pytest

from tokenmill.serve.engines.vllm.connector.cache import CacheGroup
from tokenmill.serve.engines.vllm.connector.giving import Giving
from tokenmill.serve.engines.vllm.connector.offers import KEY, asks_for_offer, brings_offer, to_params
from tokenmill.serve.engines.vllm.connector.orders import Orders, Pull, Take
from tokenmill.serve.engines.vllm.connector.taking import Place, Taking
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.control import VERSION, Ticket, decode_ticket

GROUPS = [CacheGroup(32), CacheGroup(32, 128)]
RANK = Ticket(
    version=VERSION,
    endpoints=[("shm", "host|@name")],
    memory=b"m" * 16,
    memory_blocks=1000,
    layout=KvLayout(planes=2, block_tokens=1, token_bytes=512, dtype="bytes"),
    export=0,
    token=b"",
    blocks=[],
    tokens=0,
    lease_s=0,
)
PROMPT = 300
FULL = list(range(100, 110))
WINDOWED = [0, 0, 0, 0, 0, 205, 206, 207, 208, 209]


def giving() -> Giving:
    return Giving(GROUPS, lease_s=7.0, new_token=lambda: b"t" * 16)


def offered(groups: int = 2, ranks: int = 1) -> dict[str, object]:
    """What a prefill engine's answer holds, after its journey as JSON."""
    giver = Giving(GROUPS[:groups], lease_s=7.0)
    assert giver.declare("p", PROMPT, [FULL, WINDOWED][:groups]) is not None
    offer = giver.offer("p", "print", [RANK] * ranks)
    assert offer is not None
    return json.loads(json.dumps(to_params(offer)))


def arrived(params: dict[str, object] | None, prompt: int = PROMPT, ranks: int = 1) -> Taking:
    taking = Taking(GROUPS)
    taking.arrived("d", prompt, params, fingerprint="print", ranks=ranks)
    return taking


def places(blocks: list[int], filled: int = 0) -> list[Place]:
    """A block table whose first ``filled`` places the engine had in its prefix cache."""
    return [Place(block, index < filled and block != 0) for index, block in enumerate(blocks)]


OURS = [places([*range(10, 20)]), places([0, 0, 0, 0, 0, 25, 26, 27, 28, 29])]


def taken(taking: Taking, tables: list[list[Place]] = OURS) -> Take:
    orders = Orders()
    taking.allocated("d", 299, tables, orders)
    (take,) = orders.takes
    return take


# Giving


def test_a_prompt_is_offered_whole_but_for_what_no_window_sees() -> None:
    give = giving().declare("p", PROMPT, [FULL, WINDOWED])
    assert give is not None
    assert [blocks for _, blocks in give.groups] == [tuple(FULL), (205, 206, 207, 208, 209)]
    assert [key for key, _ in give.groups] == [(1, b"t" * 16), (2, b"t" * 16)]


def test_an_offer_carries_a_ticket_for_each_rank_and_group() -> None:
    giver = giving()
    giver.declare("p", PROMPT, [FULL, WINDOWED])
    other = msgspec.structs.replace(RANK, memory=b"n" * 16)
    offer = giver.offer("p", "print", [RANK, other])
    assert offer is not None
    assert (offer.prompt_tokens, offer.tokens, offer.fingerprint) == (PROMPT, PROMPT - 1, "print")
    assert [(group.first, group.blocks) for group in offer.groups] == [(0, 10), (5, 5)]
    tickets = [[decode_ticket(each) for each in group.descriptors] for group in offer.groups]
    assert [[each.memory for each in rank] for rank in tickets] == [[RANK.memory, other.memory]] * 2
    assert tickets[1][0].filled(export=0, token=b"", blocks=[], tokens=0, lease_s=0) == RANK
    assert (tickets[1][0].export, tickets[1][0].blocks, tickets[1][0].tokens) == (
        2,
        [205, 206, 207, 208, 209],
        5,
    )
    assert tickets[0][0].lease_s == 7.0


def test_an_offer_is_made_once() -> None:
    giver = giving()
    giver.declare("p", PROMPT, [FULL, WINDOWED])
    assert giver.offer("p", "print", [RANK]) is not None
    assert giver.offer("p", "print", [RANK]) is None
    assert not giver.aborted("p")


def test_nobody_is_told_of_what_was_aborted() -> None:
    giver = giving()
    giver.declare("p", PROMPT, [FULL, WINDOWED])
    assert giver.aborted("p")
    assert giver.offer("p", "print", [RANK]) is None
    assert not giver.aborted("never seen")


def test_a_prompt_computed_again_has_keys_of_its_own() -> None:
    giver = giving()
    first = giver.declare("p", PROMPT, [FULL, WINDOWED])
    second = giver.declare("p", PROMPT, [FULL, WINDOWED])
    assert first is not None
    assert second is not None
    assert not {key for key, _ in first.groups} & {key for key, _ in second.groups}


@pytest.mark.parametrize(
    ("prompt", "tables"),
    [(1, [[], []]), (PROMPT, [FULL, [0] * 10]), (PROMPT, [FULL[:5], WINDOWED])],
    ids=["a single token", "blocks gone", "blocks missing"],
)
def test_what_is_not_there_is_not_offered(prompt: int, tables: list[list[int]]) -> None:
    giver = giving()
    assert giver.declare("p", prompt, tables) is None
    assert giver.offer("p", "print", [RANK]) is None


def test_what_a_request_says() -> None:
    assert asks_for_offer({"do_remote_decode": True})
    assert not asks_for_offer({"do_remote_decode": False})
    assert not asks_for_offer(None)
    assert brings_offer({KEY: {}})
    assert brings_offer({"do_remote_prefill": True})
    assert not brings_offer({"do_remote_prefill": False})
    assert not brings_offer(None)
    assert not offered().keys() & {"do_remote_prefill"}  # other connectors would take it for theirs


# Taking


def test_all_but_the_last_token_can_be_fetched() -> None:
    taking = arrived(offered())
    assert taking.loadable_tokens("d", 0) == 299
    assert taking.loadable_tokens("d", 64) == 235
    assert taking.loadable_tokens("d", 299) == 0
    assert taking.loadable_tokens("another", 0) == 0


def test_each_group_goes_where_it_belongs() -> None:
    take = taken(arrived(offered()))
    assert not take.problem
    assert take.waited_for
    ((full, windowed),) = take.ranks
    assert (full.blocks, full.skipped) == (tuple(range(10, 20)), 0)
    assert (windowed.blocks, windowed.skipped) == ((25, 26, 27, 28, 29), 0)
    assert decode_ticket(full.descriptor).blocks == FULL


def test_what_is_in_the_prefix_cache_is_not_fetched() -> None:
    take = taken(arrived(offered()), [places([*range(10, 20)], 4), places([0] * 5 + [25, 26, 27, 28, 29], 7)])
    ((full, windowed),) = take.ranks
    assert (full.blocks, full.skipped) == ((0, 0, 0, 0, 14, 15, 16, 17, 18, 19), 4)
    assert (windowed.blocks, windowed.skipped) == ((0, 0, 27, 28, 29), 2)


def test_every_rank_pulls_from_its_own() -> None:
    take = taken(arrived(offered(ranks=3), ranks=3))
    assert [[pull.blocks for pull in rank] for rank in take.ranks] == [
        [tuple(range(10, 20)), (25, 26, 27, 28, 29)]
    ] * 3


def test_a_request_is_fetched_once() -> None:
    taking, orders = arrived(offered()), Orders()
    taking.allocated("d", 299, OURS, orders)
    assert taking.loadable_tokens("d", 0) == 0
    taking.received("d")
    taking.allocated("d", 0, OURS, orders)
    taking.finished("d", orders)
    taking.finished("d", orders)
    assert len(orders.takes) == 1
    assert not orders.dropped


def released(orders: Orders) -> list[Pull]:
    (take,) = orders.takes
    assert not take.waited_for
    return list(take.ranks[0])


def test_the_giver_is_told_when_nothing_is_fetched() -> None:
    taking, orders = arrived(offered()), Orders()
    taking.allocated("d", 0, OURS, orders)
    assert [(pull.blocks, pull.skipped) for pull in released(orders)] == [((0,) * 10, 10), ((0,) * 5, 5)]


def test_the_giver_is_told_when_a_request_ends_in_the_queue() -> None:
    taking, orders = arrived(offered()), Orders()
    taking.finished("d", orders)
    assert len(released(orders)) == 2


def test_a_request_that_ends_during_its_pull_is_dropped() -> None:
    taking, orders = arrived(offered()), Orders()
    taking.allocated("d", 299, OURS, orders)
    taking.finished("d", orders)
    assert orders.dropped == ["d"]


def test_ordinary_requests_are_left_alone() -> None:
    taking, orders = arrived(None), Orders()
    taking.allocated("d", 0, OURS, orders)
    taking.finished("d", orders)
    assert orders == Orders()


def _changed(**fields: object) -> dict[str, object]:
    inner = offered()[KEY]
    assert isinstance(inner, dict)
    return {KEY: {**inner, **fields}}


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"do_remote_prefill": True, "remote_block_ids": [[1]]}, "same kv_connector"),
        ({KEY: {}}, "cannot be read"),
        ({KEY: 5}, "cannot be read"),
        (_changed(version=9), "version 9"),
        (_changed(fingerprint="foreign"), "laid out in another way"),
        (_changed(prompt_tokens=299), "for a prompt of 299 tokens"),
        (_changed(tokens=300), "for a prompt"),
        (_changed(groups=[]), "does not cover"),
        (offered(ranks=2), "does not cover"),
        (offered(groups=1), "does not cover"),
    ],
    ids=["nixl", "empty", "no object", "version", "layout", "prompt", "tokens", "groups", "ranks", "a group"],
)
def test_an_offer_that_does_not_fit_fails_with_its_reason(params: dict[str, object], reason: str) -> None:
    taking = arrived(params)
    assert taking.loadable_tokens("d", 0) == 299  # so that it fails where a transfer would
    take = taken(taking)
    assert reason in take.problem
    assert take.waited_for
    assert not take.ranks


def test_nobody_is_told_of_an_offer_that_does_not_fit() -> None:
    taking, orders = arrived(_changed(fingerprint="foreign")), Orders()
    taking.finished("d", orders)
    assert orders == Orders()


@pytest.mark.parametrize(
    "table",
    [
        places([*range(10, 15)]),
        places([10, 0, *range(12, 20)]),
        [replace(each, filled=index == 5) for index, each in enumerate(OURS[0])],
    ],
    ids=["too short", "a hole", "filled behind a gap"],
)
def test_no_room_is_a_failure(table: list[Place]) -> None:
    assert "no room" in taken(arrived(offered()), [table, OURS[1]]).problem
