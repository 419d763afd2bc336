"""Which data-parallel rank gets a request."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import BlockHash, RequestId, Role
from tokenmill.protocol.kv_events import BlocksStored
from tokenmill.serve.engines.kv_events.rank_caches import RankCaches
from tokenmill.serve.engines.remote.ranks import RankChoice

BLOCK = 16


def request(name: str, prompt: list[int], **fields: object) -> GenerateRequest:
    return GenerateRequest(
        request_id=RequestId(name), prompt=prompt, sampling=Sampling(max_tokens=4), **fields
    )  # type: ignore[arg-type]


def stored(caches: RankCaches, rank: int, prompt: list[int], salt: str = "") -> None:
    caches.apply(rank, [BlocksStored([BlockHash(name) for name in block_hashes(prompt, BLOCK, salt)])])


def test_equals_take_turns() -> None:
    choice = RankChoice(RankCaches(3), BLOCK)
    assert [choice.choose(request(str(n), [n] * 20)) for n in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_cached_prefix_draws() -> None:
    caches = RankCaches(3)
    choice = RankChoice(caches, BLOCK)
    prompt = list(range(200))
    stored(caches, 2, prompt)
    for number in range(3):
        name = str(number)
        assert choice.choose(request(name, [*prompt, number])) == 2
        choice.closed(RequestId(name))
    assert choice.choose(request("salted", prompt, cache_salt="other")) != 2


def test_what_a_prompt_still_costs() -> None:
    caches = RankCaches(1)
    choice = RankChoice(caches, BLOCK)
    prompt = list(range(10 * BLOCK))
    stored(caches, 0, prompt)
    choice.choose(request("a", [*prompt, *range(5)]))
    assert choice.to_compute(RequestId("a")) == 5
    choice.progressed(RequestId("a"))
    assert choice.to_compute(RequestId("a")) == 0
    assert choice.to_compute(RequestId("nobody")) == 0


def test_a_loaded_rank_loses_against_a_short_prefix() -> None:
    caches = RankCaches(2)
    choice = RankChoice(caches, BLOCK)
    prompt, long = list(range(2 * BLOCK)), list(range(5000, 5000 + 64 * BLOCK))
    stored(caches, 1, prompt)
    stored(caches, 1, long)
    for number in range(4):
        assert choice.choose(request(f"load-{number}", [*long, *[number] * 100])) == 1
    assert choice.choose(request("short", prompt)) == 0


def test_equal_prompts_at_once_stay_together() -> None:
    """The first is not cached yet; the second one still had better follow it."""
    choice = RankChoice(RankCaches(2), BLOCK)
    prompt = list(range(50 * BLOCK))
    first = choice.choose(request("first", prompt))
    assert choice.choose(request("second", [*prompt, 1])) == first
    choice.progressed(RequestId("first"))
    choice.progressed(RequestId("second"))
    assert choice.choose(request("third", prompt)) != first, "no event has told that it is cached"


def test_what_is_fetched_counts_little() -> None:
    choice = RankChoice(RankCaches(2), BLOCK)
    prompt = list(range(100 * BLOCK))
    handoff = Handoff("vllm", b"", len(prompt), early=False)
    assert choice.choose(request("decode", prompt, role=Role.DECODE, handoff=handoff)) == 0
    assert choice.choose(request("prefill", list(range(100)))) == 1
    assert choice.choose(request("next", list(range(1000, 1600)))) == 1


@given(st.lists(st.tuples(st.sampled_from(["open", "progress", "close"]), st.integers(0, 9))))
def test_the_books_end_empty(steps: list[tuple[str, int]]) -> None:
    caches = RankCaches(2)
    choice = RankChoice(caches, BLOCK)
    rng = random.Random(5)
    alive: set[str] = set()
    for what, number in steps:
        name = str(number)
        if what == "open" and name not in alive:
            alive.add(name)
            assert choice.choose(request(name, rng.choices(range(3), k=40))) in (0, 1)
        elif what == "progress":
            choice.progressed(RequestId(name))
        elif what == "close":
            alive.discard(name)
            choice.closed(RequestId(name))
    for name in alive:
        choice.closed(RequestId(name))
    assert choice._sequences == [0, 0]
    assert choice._waiting == [0.0, 0.0]
    assert not any(choice._coming)
