"""Names of KV blocks."""

from __future__ import annotations

import struct

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.protocol.block_hashes import PrefixNames, block_hashes

token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def test_the_wire_definition() -> None:
    """Spelled out once more, since routers and workers of other processes must agree."""
    tokens = [1, 2, 3, 70_000, 5, 6, 7]
    seed = xxhash.xxh3_64_intdigest(b"tenant")
    first = xxhash.xxh3_64_intdigest(struct.pack("<3I", 1, 2, 3), seed)
    second = xxhash.xxh3_64_intdigest(struct.pack("<6I", 1, 2, 3, 70_000, 5, 6), seed)
    assert block_hashes(tokens, 3, "tenant") == [first, second]
    assert block_hashes(tokens, 6) == [xxhash.xxh3_64_intdigest(struct.pack("<6I", 1, 2, 3, 70_000, 5, 6))]


@given(tokens=token_lists, block_tokens=st.integers(1, 5), cuts=st.lists(st.integers(0, 40)))
def test_extending_as_tokens_come_gives_the_same(
    tokens: list[int], block_tokens: int, cuts: list[int]
) -> None:
    names = PrefixNames(block_tokens, "salt")
    for cut in [*sorted(cuts), len(tokens)]:
        names.extend(tokens[:cut])
    assert names.hashes == block_hashes(tokens, block_tokens, "salt")
    assert len(names.hashes) == len(tokens) // block_tokens


@given(tokens=st.lists(st.integers(0, 9), min_size=12, max_size=12), at=st.integers(0, 11))
def test_a_token_changes_its_block_and_all_after_it(tokens: list[int], at: int) -> None:
    changed = [*tokens[:at], tokens[at] + 1, *tokens[at + 1 :]]
    pairs = list(zip(block_hashes(tokens, 3), block_hashes(changed, 3), strict=True))
    assert [a == b for a, b in pairs] == [block < at // 3 for block in range(4)]


def test_salts_share_nothing() -> None:
    tokens = list(range(8))
    assert not set(block_hashes(tokens, 4)) & set(block_hashes(tokens, 4, "a"))


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_that_is_none(token: int) -> None:
    with pytest.raises(OverflowError):
        block_hashes([token], 1)
