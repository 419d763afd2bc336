"""KV events of a TensorRT-LLM server: read leniently, numbered, and translated to our names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from tokenmill.errors import ProtocolError
from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.ids import Role
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, CacheTier, KvEvent
from tokenmill.serve.engines.kv_events.translation import BlockTranslation
from tokenmill.serve.engines.kv_events.wire import EngineMoved, EngineRemoved, EngineStored
from tokenmill.serve.engines.remote.http_client import HttpReply
from tokenmill.serve.engines.trtllm.kv_feed import EventFeed
from tokenmill.serve.engines.trtllm.kv_wire import EventReader
from tokenmill.testing.engine_client import EngineClient
from tokenmill.testing.trtllm_double.options import Quirks

from .conftest import DoubledEngine, engine_options


def block(name: int, tokens: list[int], **fields: object) -> dict[str, object]:
    ids = [{"type": "unique_token", "token_id": token, "token_extra_id": 0} for token in tokens]
    return {
        "type": "stored_block",
        "block_hash": name,
        "tokens": ids,
        "cache_level": 0,
        "priority": 35,
        **fields,
    }


def stored(number: int, parent: int | None, *blocks: object, **fields: object) -> dict[str, object]:
    data = {"type": "stored", "parent_hash": parent, "blocks": list(blocks)}
    return {"event_id": number, "data": data, "window_size": 4096, **fields}


def read(reader: EventReader, *events: object) -> list[list[object]]:
    return [list(note.events) for note in reader.read(msgspec.json.encode(events))]


def test_created_tells_the_room() -> None:
    data = {"type": "created", "num_blocks_per_cache_level": [100, 7]}
    (note,) = EventReader().read(msgspec.json.encode([{"event_id": 0, "data": data, "window_size": 4096}]))
    assert (note.number, note.blocks, note.events) == (0, 100, [])


def test_stored_blocks_follow_each_other() -> None:
    (events,) = read(EventReader(), stored(1, None, block(11, [1, 2]), block(12, [3, 4])))
    assert events == [
        EngineStored(
            hashes=[11, 12], parent=None, token_ids=[1, 2, 3, 4], block_tokens=2, keys=[(), ()], group=4096
        )
    ]


def test_a_block_that_is_not_full_has_no_name_and_is_not_missed() -> None:
    reader = EventReader(block_tokens=2)
    first, second = read(
        reader,
        stored(1, None, block(11, [1, 2]), block(12, [3])),
        {"event_id": 2, "data": {"type": "removed", "block_hashes": [12, 11]}, "window_size": 4096},
    )
    assert [event.hashes for event in first if isinstance(event, EngineStored)] == [[11]]
    assert second == [EngineRemoved(hashes=[11], group=4096)]


def test_blocks_of_two_memories_are_told_apart_and_followed() -> None:
    reader = EventReader()
    moved = {
        "type": "updated",
        "block_hash": 12,
        "cache_level": {"type": "event_diff", "new_value": 0, "old_value": 1},
        "priority": None,
    }
    first, second, third = read(
        reader,
        stored(1, None, block(11, [1, 2]), block(12, [3, 4], cache_level=1)),
        {"event_id": 2, "data": moved, "window_size": 4096},
        {"event_id": 3, "data": {"type": "removed", "block_hashes": [12]}, "window_size": 4096},
    )
    tiers = [(event.tier, event.parent) for event in first if isinstance(event, EngineStored)]
    assert tiers == [(CacheTier.DEVICE, None), (CacheTier.HOST, 11)]
    assert second == [EngineMoved(name=12, before=CacheTier.HOST, after=CacheTier.DEVICE, group=4096)]
    assert third == [EngineRemoved(hashes=[12], group=4096)]


def test_a_moved_block_keeps_its_name() -> None:
    translation = BlockTranslation()
    words = translation.apply(
        [EngineStored(hashes=[1, 2], parent=None, token_ids=[5, 6, 7, 8], block_tokens=2)]
    )
    assert isinstance(words[0], BlocksStored)
    first, second = words[0].hashes
    moved = EngineMoved(name=2, before=CacheTier.DEVICE, after=CacheTier.HOST)
    assert translation.apply([moved]) == [
        BlocksStored([second], first, CacheTier.HOST),
        BlocksRemoved([second], CacheTier.DEVICE),
    ]
    assert translation.apply([moved]) == []
    assert translation.apply([EngineRemoved(hashes=[2], tier=CacheTier.HOST)]) == [
        BlocksRemoved([second], CacheTier.HOST)
    ]


def test_names_may_be_text() -> None:
    reader = EventReader()
    first, second = read(
        reader,
        stored(1, None, block(11, [1, 2]) | {"block_hash": "ab"}),
        {"event_id": 2, "data": {"type": "removed", "block_hashes": ["ab"]}, "window_size": 4096},
    )
    assert [event.hashes for event in first if isinstance(event, EngineStored)] == [[b"ab"]]
    assert second == [EngineRemoved(hashes=[b"ab"], group=4096)]


def test_narrow_windows_are_not_full_attention() -> None:
    reader = EventReader()
    wide, narrow = read(
        reader, stored(1, None, block(11, [1, 2])), stored(2, None, block(11, [1, 2])) | {"window_size": 128}
    )
    assert [event.full_attention for event in [*wide, *narrow] if isinstance(event, EngineStored)] == [
        True,
        False,
    ]


@pytest.mark.parametrize("extra", [{"mm_keys": [["x"]]}, {"lora_id": 3}])
def test_blocks_that_mean_more_than_their_tokens_are_left_out(extra: dict[str, object]) -> None:
    (events,) = read(EventReader(), stored(1, None, block(11, [1, 2], **extra)))
    translation = BlockTranslation()
    assert translation.apply(events) == []  # type: ignore[arg-type]
    assert translation.untranslated == 1


def test_what_cannot_be_read_is_skipped_but_counted() -> None:
    reader = EventReader()
    notes = reader.read(
        msgspec.json.encode(
            [
                {"event_id": 4, "data": {"type": "stored", "blocks": "?"}},
                {"event_id": 5, "data": {"type": "unheard"}},
                {"data": 3},
                7,
            ]
        )
    )
    assert [(note.number, note.events) for note in notes] == [(4, []), (5, [])]
    with pytest.raises(ProtocolError, match="kv_cache_events"):
        reader.read(b"{}")


def names(events: list[KvEvent]) -> set[int]:
    """What is cached after these events."""
    cached: set[int] = set()
    for event in events:
        match event:
            case BlocksStored(hashes):
                cached |= set(hashes)
            case BlocksRemoved(hashes):
                cached -= set(hashes)
            case CacheCleared():
                cached.clear()
    return cached


def told(client: EngineClient) -> list[KvEvent]:
    return [event for output in client.outputs for event in output.kv_events]


async def wait_for(client: EngineClient, wanted: set[int]) -> None:
    async with asyncio.timeout(30):
        while not wanted <= names(told(client)):
            await asyncio.sleep(0.02)


async def test_what_is_cached_has_our_names(checkpoint: Path) -> None:
    prompt = list(range(20, 90))
    async with EngineClient(DoubledEngine(checkpoint)) as client:
        assert (client.info.kv_blocks, client.info.block_tokens) == (256, 16)
        tokens = await client.generate(prompt, max_tokens=40)
        whole = block_hashes(prompt + tokens[:-1], 16)
        await wait_for(client, set(whole))
        assert names(told(client)) == set(whole)


async def test_evicted_blocks_are_taken_back(checkpoint: Path) -> None:
    prompts = [[seed + 8, *range(20, 90)] for seed in range(6)]
    async with EngineClient(DoubledEngine(checkpoint, kv_blocks=12)) as client:
        for prompt in prompts:
            await client.generate(prompt, max_tokens=4)
        await wait_for(client, set(block_hashes(prompts[-1], 16)))
        left = names(told(client))
        assert len(left) <= 12
        assert not left & set(block_hashes(prompts[0], 16))


async def test_lost_events_clear_the_index(checkpoint: Path) -> None:
    async with EngineClient(DoubledEngine(checkpoint, quirks=Quirks(events_lost=4))) as client:
        async with asyncio.timeout(30):
            for seed in range(200):
                await client.generate([seed + 8, *range(20, 90)], max_tokens=4)
                if CacheCleared() in told(client):
                    break
        assert CacheCleared() in told(client)


class Scripted:
    """Stands for a client whose server gives these answers."""

    def __init__(self, *answers: list[dict[str, object]]) -> None:
        self._answers = list(answers)

    async def request(self, *_: object, **__: object) -> HttpReply:
        return HttpReply(200, msgspec.json.encode(self._answers.pop(0)))


async def test_after_a_gap_nothing_builds_on_what_was_before() -> None:
    told: list[KvEvent] = []
    client = Scripted(
        [stored(0, None, block(11, [1, 2]))],
        [stored(2, 11, block(12, [3, 4]))],
        [stored(3, None, block(13, [5, 6])), stored(4, 13, block(14, [7, 8]))],
    )
    feed = EventFeed(client, told.extend)  # type: ignore[arg-type]
    for _ in range(3):
        assert await feed.first()
    names_now = names(told)
    assert feed.resets == 1
    assert told.count(CacheCleared()) == 1
    assert names_now == set(block_hashes([5, 6, 7, 8], 2))


async def test_an_engine_without_a_prefix_cache_is_not_asked(checkpoint: Path) -> None:
    options = engine_options(Role.BOTH)
    options.kv_cache_config.event_buffer_max_size = 0
    options.kv_cache_config.enable_block_reuse = False
    engine = DoubledEngine(checkpoint, options=options, prefix_cache=False)
    async with EngineClient(engine) as client:
        prompt = list(range(20, 90))
        assert await client.generate(prompt) == await client.generate(prompt)
        assert told(client) == []
        assert client.info.kv_blocks == 256
