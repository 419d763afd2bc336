"""vLLM's KV event messages, in both forms."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ProtocolError
from tokenmill.protocol.kv_events import CacheTier
from tokenmill.serve.engines.kv_events.wire import (
    EngineCleared,
    EngineRemoved,
    EngineStored,
    EventBatch,
    read_batch,
)


def message(
    events: list[object], number: int = 3, rank: int | None = None, topic: bytes = b"kv"
) -> EventBatch:
    payload = msgspec.msgpack.encode([1.5, events, rank])
    return read_batch([topic, number.to_bytes(8, "big"), payload])


MAPS: list[object] = [
    {
        "type": "BlockStored",
        "block_hashes": [2**63 + 1, 2],
        "parent_block_hash": None,
        "token_ids": [1, 2, 3, 4],
        "block_size": 2,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [["salt"], None],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    },
    {"type": "BlockRemoved", "block_hashes": [2], "medium": "CPU", "group_idx": 1},
    {"type": "AllBlocksCleared"},
]
ARRAYS: list[object] = [
    ["BlockStored", [2**63 + 1, 2], None, [1, 2, 3, 4], 2, None, "GPU"],
    ["BlockRemoved", [2], "CPU"],
    ["AllBlocksCleared"],
]


@pytest.mark.parametrize("events", [MAPS, ARRAYS])
def test_both_forms(events: list[object]) -> None:
    batch = message(events, number=7, rank=1)
    assert (batch.sequence, batch.rank, batch.skipped) == (7, 1, 0)
    stored, removed, cleared = batch.events
    assert isinstance(stored, EngineStored)
    assert (stored.hashes, stored.parent, stored.token_ids) == ([2**63 + 1, 2], None, [1, 2, 3, 4])
    assert (stored.block_tokens, stored.tier, stored.lora, stored.full_attention) == (2, 0, False, True)
    assert isinstance(removed, EngineRemoved)
    assert (removed.hashes, removed.tier) == ([2], CacheTier.HOST)
    assert cleared == EngineCleared()


def test_what_only_sglang_says() -> None:
    head = {**MAPS[0], "cache_salt": "salt", "session_id": "s"}  # type: ignore[dict-item]
    del head["extra_keys"]
    tail = {**head, "parent_block_hash": 2}
    first, second, pinned = message(
        [head, tail, {"type": "BlockRemoved", "block_hashes": [2], "medium": "CPU_PINNED"}]
    ).events
    assert isinstance(first, EngineStored)
    assert isinstance(second, EngineStored)
    assert isinstance(pinned, EngineRemoved)
    assert (first.keys, second.keys) == ([("salt",)], [])
    assert pinned.tier is CacheTier.HOST


def test_what_only_maps_say() -> None:
    stored, removed, _ = message(MAPS).events
    assert isinstance(stored, EngineStored)
    assert stored.keys == [("salt",), ()]
    assert isinstance(removed, EngineRemoved)
    assert removed.group == 1


def test_the_oldest_arrays_lack_the_medium() -> None:
    (stored,) = message([["BlockStored", [1], None, [1, 2], 2, None]]).events
    assert isinstance(stored, EngineStored)
    assert stored.tier is CacheTier.DEVICE


def test_bytes_as_hashes() -> None:
    (removed,) = message([["BlockRemoved", [b"\x01" * 32], None]]).events
    assert isinstance(removed, EngineRemoved)
    assert removed.hashes == [b"\x01" * 32]


def test_a_sliding_window_group() -> None:
    assert isinstance(MAPS[0], Mapping)
    (stored,) = message([{**MAPS[0], "kv_cache_spec_kind": "sliding_window", "block_hashes": []}]).events
    assert isinstance(stored, EngineStored)
    assert not stored.full_attention
    assert stored.hashes == []


def test_unknown_events_are_skipped_and_counted() -> None:
    batch = message([["Novelty", 1], 17, {"type": "BlockStored"}, *ARRAYS, ["BlockStored", ["x"], None]])
    assert batch.skipped == 4
    assert len(batch.events) == 3


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"only"],
        [b"t", b"short", b"\x90"],
        [b"t", bytes(8), b"\xc1"],
        [b"t", bytes(8), msgspec.msgpack.encode([1.0, 5])],
    ],
)
def test_no_message_at_all(frames: list[bytes]) -> None:
    with pytest.raises(ProtocolError):
        read_batch(frames)


@given(st.lists(st.recursive(st.none() | st.integers(-5, 2**64 - 1) | st.text() | st.binary(), st.lists)))
def test_nothing_crashes_it(events: list[object]) -> None:
    batch = message(events)
    assert batch.skipped + len(batch.events) == len(events)
