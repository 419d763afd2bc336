from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.router.index import PrefixIndex
from tokenmill.decide.router.lookup import Finder
from tokenmill.decide.router.predictions import Predictions
from tokenmill.protocol.block_hashes import block_hashes, pack_tokens
from tokenmill.protocol.kv_events import BlocksStored, CacheTier


def finder(block_tokens: int = 4) -> Finder:
    return Finder(PrefixIndex(100_000, shards=4), Predictions(1000), block_tokens)


def depths(lookup, members: int, tier: CacheTier = CacheTier.DEVICE) -> dict[int, int]:
    """Exact depth in blocks by slot, of those who have any."""
    found = {}
    for interval in lookup.intervals(members, tier):
        for low, high, mask in lookup.refine(interval, members, tier):
            assert high == low + 1
            for slot in range(members.bit_length()):
                if mask >> slot & 1:
                    assert slot not in found
                    found[slot] = low
    return found


class Named:
    """A prompt whose blocks have names already."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = len(tokens)
        self._tokens = tokens

    def names(self, block_tokens: int) -> list[int]:
        return block_hashes(self._tokens, block_tokens)


def test_the_grid_grows_by_a_quarter():
    grid = finder().grid
    assert grid[:14] == (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 18, 22, 27)
    assert all(after - before <= max(1, before // 4) for before, after in pairwise(grid))


def test_names_are_those_of_the_blocks():
    tokens = list(range(500))
    for salt in ("", "tenant"):
        lookup = finder().look_up(pack_tokens(tokens), salt)
        hashes = block_hashes(tokens, 4, salt)
        assert lookup.names == [hashes[depth - 1] for depth in lookup.depths]
        assert lookup.depths[-1] == 124  # the last token is computed in any case


def test_short_prompts_have_no_blocks():
    for count in range(5):
        assert finder().look_up(pack_tokens(range(count))).depths == ()
    assert finder().look_up(pack_tokens(range(5))).depths == (1,)
    assert finder().look_up(b"").intervals(1) == []
    assert finder().look_up_named(Named(list(range(4)))).depths == ()


@given(
    blocks=st.integers(1, 300),
    cached=st.lists(st.integers(0, 320), min_size=1, max_size=12),
    members=st.integers(0, 2**12 - 1),
)
def test_every_workers_depth_is_found(blocks, cached, members):
    known = finder()
    tokens = list(range(4 * blocks + 1))
    longer = [*tokens, *range(4 * 320)]
    hashes = block_hashes(longer, 4)
    for depth in cached:
        known.index.apply(known.index.join(), BlocksStored(hashes[:depth]))
    lookup, named = known.look_up(pack_tokens(tokens)), known.look_up_named(Named(tokens))
    assert (named.depths, named.names) == (lookup.depths, lookup.names)
    assert depths(named, members) == depths(lookup, members)
    expected = {
        slot: min(depth, blocks) for slot, depth in enumerate(cached) if depth and members >> slot & 1
    }
    assert depths(lookup, members) == expected


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60)), min_size=1, max_size=6)
)
def test_lower_tiers_carry_a_prefix_on(workers):
    known = finder()
    tokens = list(range(4 * 60 + 1))
    hashes = block_hashes(tokens, 4)
    for parts in workers:
        owner, begin = known.index.join(), 0
        for tier, blocks in zip(CacheTier, parts, strict=True):
            known.index.apply(owner, BlocksStored(hashes[begin : begin + blocks], None, tier))
            begin += blocks
    lookup = known.look_up(pack_tokens(tokens))
    for tier in CacheTier:
        sums = {slot: min(60, sum(parts[: tier + 1])) for slot, parts in enumerate(workers)}
        assert depths(lookup, 63, tier) == {slot: depth for slot, depth in sums.items() if depth}


def test_blocks_of_other_sizes_agree_where_they_end_together():
    index, predictions = PrefixIndex(1000), Predictions(10)
    tokens = list(range(97))
    small, large = index.join(), index.join()
    index.apply(small, BlocksStored(block_hashes(tokens[:40], 4)))
    index.apply(large, BlocksStored(block_hashes(tokens[:72], 12)))
    by_small = Finder(index, predictions, 4).look_up(pack_tokens(tokens))
    by_large = Finder(index, predictions, 12).look_up(pack_tokens(tokens))
    assert depths(by_small, small.bit) == {0: 10}
    assert depths(by_large, large.bit) == {1: 6}


def test_predictions_count_like_events():
    known = finder()
    tokens = list(range(85))
    lookup = known.look_up(pack_tokens(tokens))
    owner = known.index.join()
    known.predictions.add(owner, lookup.names, 0.0, 5.0)
    assert depths(lookup, owner.bit) == {0: 21}
    longer = known.look_up(pack_tokens([*tokens, *tokens]))
    assert depths(longer, owner.bit) == {0: 18}  # of the grid 18, 22; what lies between was not named


def test_a_block_in_the_middle_that_is_missing_is_not_noticed_between_two_of_the_grid():
    """The assumption is that tails go before heads. Where it fails, a depth is taken for too deep."""
    known = finder()
    tokens = list(range(81))
    hashes = block_hashes(tokens, 4)
    owner = known.index.join()
    known.index.apply(owner, BlocksStored([name for block, name in enumerate(hashes) if block != 10]))
    assert depths(known.look_up(pack_tokens(tokens)), owner.bit) == {0: 20}
