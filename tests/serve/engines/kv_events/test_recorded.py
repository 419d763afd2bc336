"""What real vLLM servers said of their caches, replayed: what we know then is what they had.

The recordings are made by ``scripts/vllm_cpu/record_kv_events.py``.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, KvEvent
from tokenmill.serve.engines.kv_events.order import MessageOrder, Verdict
from tokenmill.serve.engines.kv_events.translation import BlockTranslation
from tokenmill.serve.engines.kv_events.wire import EngineStored, EventBatch, read_batch

FOLDER = Path(__file__).parent / "recorded"
CASES = ("llama", "qwen3", "gpt_oss", "data_parallel")

OLD_FIELDS = {
    "BlockStored": (
        ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name")
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}
"""Events as arrays, in the order that servers before 0.3x wrote them."""


def recorded(case: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{case}.json").read_text())


def batch_of(message: dict[str, Any], *, as_arrays: bool = False) -> EventBatch:
    payload = base64.b64decode(message["payload"])
    if as_arrays:
        ts, events, *rank = msgspec.msgpack.decode(payload)
        old = [[each["type"], *map(each.get, OLD_FIELDS[each["type"]])] for each in events]
        payload = msgspec.msgpack.encode([ts, old, *rank])
    return read_batch([b"", message["sequence"].to_bytes(8, "big"), payload])


class Follower:
    """A rank's events to the set of blocks that are cached there, in our names."""

    def __init__(self, *, salts_told: bool) -> None:
        self.cached: set[int] = set()
        self._salts_told = salts_told
        self.untranslated = 0
        self._order = MessageOrder()
        self._translation = BlockTranslation()

    def take(self, batch: EventBatch) -> None:
        verdict, ready = self._order.take(batch)
        assert verdict is Verdict.APPLY, "the recording has no gap"
        for each in ready:
            assert not each.skipped
            for word in self._translation.apply(each.events):
                self._apply(word)
        self.untranslated = self._translation.untranslated

    def _apply(self, word: KvEvent) -> None:
        if isinstance(word, CacheCleared):
            self.cached.clear()
        elif isinstance(word, BlocksRemoved):
            # Without salts two of their blocks may have one name of ours; then it goes with the first.
            assert self.cached.issuperset(word.hashes) or not self._salts_told, "what goes was there"
            self.cached.difference_update(word.hashes)
        else:
            assert isinstance(word, BlocksStored)
            self.cached.update(word.hashes)


def names(step: dict[str, Any], block_tokens: int) -> list[int]:
    """What a router calls the full blocks that the server has computed; the last token made is in none."""
    computed = [*step["prompt"], *step["output"][:-1]]
    return block_hashes(computed, block_tokens, step.get("cache_salt", ""))


FORMS = [(case, False) for case in CASES] + [(case, True) for case in CASES if case != "gpt_oss"]
"""Groups of layers came with the maps."""


@pytest.mark.parametrize(("case", "as_arrays"), FORMS)
def test_we_know_what_they_had(case: str, as_arrays: bool) -> None:
    content = recorded(case)
    size = content["block_tokens"]
    followers = [Follower(salts_told=not as_arrays) for _ in range(content["ranks"])]
    seen: list[set[int]] = [set() for _ in followers]
    for step in content["steps"]:
        for message in step["messages"]:
            followers[message["rank"]].take(batch_of(message, as_arrays=as_arrays))
        if as_arrays and step.get("cache_salt"):
            continue  # arrays did not tell of salts
        follower, known = followers[step["rank"]], seen[step["rank"]]
        asked = names(step, size)
        known.update(asked)
        if step.get("cleared_before"):
            for other in followers[1:]:
                assert other.cached <= set().union(*seen)
            assert followers[0].cached == set(names(content["steps"][-1], size)) or len(followers) > 1
        assert follower.cached.issuperset(asked), f"{len(asked)} blocks of a prompt must be cached now"
        if not as_arrays:
            assert follower.cached <= known, "nothing is called by a name that no request has"
            assert not follower.untranslated


@pytest.mark.parametrize("case", CASES)
def test_prompts_were_pushed_out(case: str) -> None:
    """Else the recordings would not show it."""
    content = recorded(case)
    kinds = [
        type(event).__name__
        for step in content["steps"]
        for message in step["messages"]
        for event in batch_of(message).events
    ]
    assert {"EngineStored", "EngineRemoved", "EngineCleared"} <= set(kinds)


@pytest.mark.parametrize("case", CASES)
def test_the_replay_socket_tells_the_same(case: str) -> None:
    content = recorded(case)
    live = [message for step in content["steps"] for message in step["messages"]]
    for rank in range(content["ranks"]):
        assert [each for each in content["replayed"] if each["rank"] == rank] == [
            each for each in live if each["rank"] == rank
        ]


@pytest.mark.parametrize("case", CASES)
def test_a_reader_that_missed_messages_gets_them_again(case: str) -> None:
    content = recorded(case)
    live = [message for step in content["steps"] for message in step["messages"] if message["rank"] == 0]
    order = MessageOrder()
    ready: list[EventBatch] = []
    for message in live[len(live) // 2 :]:
        verdict, more = order.take(batch_of(message))
        ready += more
        if verdict is Verdict.REPLAY:
            again = [batch_of(each) for each in content["replayed"] if each["rank"] == 0]
            lost, more = order.replayed(again)
            assert not lost
            ready += more
    assert [each.sequence for each in ready] == [message["sequence"] for message in live]


def test_a_sliding_window_names_no_blocks() -> None:
    """gpt-oss: one group of layers sees everything, the other a window, with fewer hashes than blocks."""
    stored = [
        event
        for step in recorded("gpt_oss")["steps"]
        for message in step["messages"]
        for event in batch_of(message).events
        if isinstance(event, EngineStored)
    ]
    windows = [event for event in stored if not event.full_attention]
    assert {event.group for event in windows}.isdisjoint(
        event.group for event in stored if event.full_attention
    )
    assert any(len(event.hashes) * event.block_tokens < len(event.token_ids) for event in windows)
    assert BlockTranslation().apply(list(windows)) == []


def test_ranks_have_ports_and_numbers_of_their_own() -> None:
    content = recorded("data_parallel")
    for rank in (0, 1):
        told = [each for step in content["steps"] for each in step["messages"] if each["rank"] == rank]
        assert [each["sequence"] for each in told] == list(range(len(told)))
        assert {batch_of(each).rank for each in told} == {rank}
