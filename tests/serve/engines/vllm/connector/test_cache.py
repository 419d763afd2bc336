"""What a paged cache looks like from outside."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.vllm.connector.cache import (
    CacheGroup,
    Region,
    complete,
    held_back,
    memory_layout,
    offered_tokens,
)
from tokenmill.serve.transfer.base import KvLayout


def test_layers_that_follow_each_other_are_planes() -> None:
    regions = [Region(4 * 100 * 512, plane * 100 * 512, 512) for plane in range(4)]
    assert memory_layout(regions, 100) == KvLayout(planes=4, block_tokens=1, token_bytes=512, dtype="bytes")


def test_groups_that_lie_over_each_other_are_counted_once() -> None:
    regions = [Region(2 * 100 * 512, plane * 100 * 512, 512) for plane in (0, 1, 0, 1)]
    assert memory_layout(regions, 100).planes == 2


def test_blocks_of_all_layers_together_are_one_plane() -> None:
    regions = [Region(100 * 2048, layer * 512, 2048) for layer in range(4)]
    assert memory_layout(regions, 100) == KvLayout(planes=1, block_tokens=1, token_bytes=2048, dtype="bytes")


@pytest.mark.parametrize(
    "regions",
    [
        [],
        [Region(1000 * 100, 0, 512), Region(1000 * 100, 51200, 488)],
        [Region(512 * 100 + 1, 0, 512)],
        [Region(512 * 100, 512 * 100, 512)],
    ],
    ids=["none", "unlike pages", "a rest", "outside"],
)
def test_what_is_no_planes_of_pages_is_refused(regions: list[Region]) -> None:
    with pytest.raises(ConfigError):
        memory_layout(regions, 100)


def test_full_attention_needs_all() -> None:
    assert CacheGroup(32).needed(0) == range(0)
    assert CacheGroup(32).needed(32) == range(1)
    assert CacheGroup(32).needed(33) == range(2)


@given(st.integers(0, 5000), st.sampled_from([16, 32, 48]), st.sampled_from([1, 16, 128, 1000]))
def test_a_window_needs_the_blocks_that_the_next_token_looks_at(tokens: int, size: int, window: int) -> None:
    seen = {token // size for token in range(max(0, tokens - window + 1), tokens)}
    needed = set(CacheGroup(size, window).needed(tokens))
    assert seen <= needed
    assert needed - seen <= {tokens // size}  # where the window is one token there is nothing to look at


@given(st.integers(2, 5000), st.sampled_from([16, 32]), st.sampled_from([16, 128, 1000]))
def test_what_the_giver_would_drop_is_held_back(prompt: int, size: int, window: int) -> None:
    group = CacheGroup(size, window)
    kept = set(group.needed(prompt)) | set(held_back(group, prompt))
    assert set(group.needed(offered_tokens(prompt))) <= kept
    assert len(held_back(group, prompt)) <= 1


def test_full_attention_holds_nothing_back() -> None:
    assert not held_back(CacheGroup(32), 159)
    assert held_back(CacheGroup(32, 128), 159) == range(1)
    assert not held_back(CacheGroup(32, 128), 160)


def test_a_null_block_is_none() -> None:
    assert complete([3, 1])
    assert not complete([3, 0])
