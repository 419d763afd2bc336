"""From vLLM's block names to ours."""

from __future__ import annotations

import random

from tokenmill.protocol.block_hashes import block_hashes
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, CacheTier, KvEvent
from tokenmill.serve.engines.kv_events import translation as translation_module
from tokenmill.serve.engines.kv_events.translation import BlockTranslation
from tokenmill.serve.engines.kv_events.wire import EngineCleared, EngineRemoved, EngineStored

SIZE = 4
TOKENS = list(range(100, 132))
OURS = block_hashes(TOKENS, SIZE)
THEIRS = [bytes([i]) * 8 for i in range(8)]


def stored(first: int, last: int, **fields: object) -> EngineStored:
    values: dict[str, object] = {
        "hashes": THEIRS[first:last],
        "parent": THEIRS[first - 1] if first else None,
        "token_ids": TOKENS[first * SIZE : last * SIZE],
        "block_tokens": SIZE,
        **fields,
    }
    return EngineStored(**values)  # type: ignore[arg-type]


def names(events: list[KvEvent]) -> list[int]:
    return [name for event in events if isinstance(event, BlocksStored) for name in event.hashes]


def test_a_chain_gets_the_names_that_a_router_computes() -> None:
    translation = BlockTranslation()
    assert translation.apply([stored(0, 3)]) == [BlocksStored(OURS[:3], None)]  # type: ignore[arg-type]
    assert translation.apply([stored(3, 5)]) == [BlocksStored(OURS[3:5], OURS[2])]  # type: ignore[arg-type]


def test_a_branch_from_the_middle() -> None:
    translation = BlockTranslation()
    translation.apply([stored(0, 6)])
    other = [7] * SIZE
    event = stored(2, 3, hashes=[b"branch"], token_ids=other)
    assert names(translation.apply([event])) == block_hashes(TOKENS[: 2 * SIZE] + other, SIZE)[2:]


def test_hash_states_may_be_forgotten() -> None:
    translation = BlockTranslation()
    for index in range(8):
        assert names(translation.apply([stored(index, index + 1)])) == [OURS[index]]
        translation._states.clear()


def test_few_states_are_kept() -> None:
    translation = BlockTranslation()
    rng = random.Random(1)
    for number in range(translation_module.KEPT_STATES + 50):
        tokens = rng.choices(range(1000), k=SIZE)
        translation.apply([stored(0, 1, hashes=[number], token_ids=tokens)])
    assert len(translation._states) == translation_module.KEPT_STATES


def test_removed_blocks() -> None:
    translation = BlockTranslation()
    translation.apply([stored(0, 3)])
    events = translation.apply([EngineRemoved(hashes=[THEIRS[2], THEIRS[7]])])
    assert events == [BlocksRemoved([OURS[2]], CacheTier.DEVICE)]  # type: ignore[list-item]
    assert len(translation) == 2


def test_a_block_lives_as_long_as_one_tier_has_it() -> None:
    translation = BlockTranslation()
    translation.apply([stored(0, 1), stored(0, 1, tier=CacheTier.HOST)])
    translation.apply([EngineRemoved(hashes=[THEIRS[0]])])
    assert len(translation) == 1
    events = translation.apply([EngineRemoved(hashes=[THEIRS[0]], tier=CacheTier.HOST)])
    assert events == [BlocksRemoved([OURS[0]], CacheTier.HOST)]  # type: ignore[list-item]
    assert len(translation) == 0


def test_salts() -> None:
    translation = BlockTranslation()
    salted = translation.apply([stored(0, 2, keys=[("secret",), ()]), stored(2, 3)])
    assert names(salted) == block_hashes(TOKENS, SIZE, "secret")[:3]


def test_what_tokens_alone_do_not_name_is_left_out() -> None:
    translation = BlockTranslation()
    for event in (
        stored(0, 2, lora=True),
        stored(0, 2, keys=[(("mm", 3),), ()]),
        stored(0, 2, keys=[("salt", "more"), ()]),
        stored(0, 2, token_ids=TOKENS[:7]),
        stored(3, 4),
    ):
        assert translation.apply([event]) == []
    assert translation.untranslated == 9


def test_a_hybrid_model_is_known_by_its_full_attention() -> None:
    translation = BlockTranslation()
    window = stored(0, 2, group=1, full_attention=False)
    assert translation.apply([window]) == []
    assert names(translation.apply([stored(0, 2)])) == OURS[:2]
    assert translation.apply([EngineRemoved(hashes=THEIRS[:2], group=1)]) == []
    assert len(translation) == 2


def test_clearing() -> None:
    translation = BlockTranslation()
    translation.apply([stored(0, 2)])
    assert translation.apply([EngineCleared()]) == [CacheCleared()]
    assert translation.apply([stored(2, 3)]) == []
    assert names(translation.apply([stored(0, 3)])) == OURS[:3]


def test_a_parent_evicted_before_its_child_costs_hits_only() -> None:
    translation = BlockTranslation()
    translation.apply([stored(0, 3)])
    translation.apply([EngineRemoved(hashes=[THEIRS[0]])])
    translation._states.clear()
    assert translation.apply([stored(3, 4)]) == []
    assert translation.untranslated == 1
