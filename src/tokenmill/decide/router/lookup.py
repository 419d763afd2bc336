"""How much of one prompt each worker has cached, found by hashing to few depths.

Exists because a block's name depends on its position alone: so the prompt is hashed at a grid of depths, each
a quarter deeper than the one before; only where the set of workers changes between two of them, and only for
the workers that it matters for, the exact depth is searched by halving. It must not know costs or loads.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, cast

from xxhash import xxh3_64

from tokenmill.decide.router.index import PrefixIndex
from tokenmill.decide.router.predictions import Predictions
from tokenmill.protocol.block_hashes import TOKEN_BYTES, NamedPrompt, prefix_seed
from tokenmill.protocol.ids import BlockHash
from tokenmill.protocol.kv_events import CacheTier

DEEPEST_BLOCK: Final = 1 << 22
"""Prompts are looked up to this depth: 64 million tokens in blocks of 16."""

STEP_SHARE: Final = 4
"""From a depth to the grid's next it is this share of it, and at least one block."""


Interval = tuple[int, int, int]
"""(low, high, mask): workers whose cached prefix is ``low`` blocks deep or more, and less than ``high``."""


class Finder:
    """Looks prompts up for workers of one block size. ``grid``: the depths in blocks: 1, 2, ... 8, 10, 12,
    15."""

    def __init__(self, index: PrefixIndex, predictions: Predictions, block_tokens: int) -> None:
        self.index = index
        self.predictions = predictions
        self.block_tokens = block_tokens
        self.block_bytes = block_tokens * TOKEN_BYTES
        grid = [1]
        while grid[-1] < DEEPEST_BLOCK:
            grid.append(grid[-1] + max(1, grid[-1] // STEP_SHARE))
        self.grid = tuple(grid)
        ends = [depth * self.block_bytes for depth in grid]
        self.spans = tuple(map(slice, [0, *ends], ends))

    def look_up(self, packed: bytes, salt: str = "") -> Lookup:
        """Hash a prompt at the grid's depths. The deepest is the last that helps: an engine always computes a
        prompt's last token."""
        blocks = min(DEEPEST_BLOCK, (len(packed) - TOKEN_BYTES) // self.block_bytes) if packed else 0
        steps = bisect_right(self.grid, blocks)
        depths, spans = self.grid[:steps], self.spans[:steps]
        if blocks and depths[-1] != blocks:
            spans = (*spans, slice(depths[-1] * self.block_bytes, blocks * self.block_bytes))
            depths = (*depths, blocks)
        view, seed = memoryview(packed), prefix_seed(salt)
        state = xxh3_64(seed=seed)
        update, digest = state.update, state.intdigest
        names: list[int] = []
        append = names.append
        for span in spans:
            update(view[span])
            append(digest())
        return Lookup(self, depths, names, Hashing(view, seed, self.block_bytes))

    def look_up_named(self, prompt: NamedPrompt) -> Lookup:
        """The same for a prompt whose blocks' names are known."""
        blocks = max(0, min(DEEPEST_BLOCK, (prompt.tokens - 1) // self.block_tokens))
        depths = self.grid[: bisect_right(self.grid, blocks)]
        if blocks and depths[-1] != blocks:
            depths = (*depths, blocks)
        known = prompt.names(self.block_tokens)
        return Lookup(self, depths, [known[depth - 1] for depth in depths], known)


class Hashing(NamedTuple):
    """How names at other depths are found: by hashing ``view``, the packed prompt, further."""

    view: memoryview
    seed: int
    block_bytes: int


class Lookup:
    """One prompt against the index. ``names``: its blocks' at ``depths``. ``lowest``: tier that has any
    block. ``rest``: the names of all blocks, or how they are found."""

    __slots__ = ("_finder", "_rest", "block_tokens", "depths", "lowest", "names")

    def __init__(
        self, finder: Finder, depths: tuple[int, ...], names: list[int], rest: Hashing | Sequence[int]
    ) -> None:
        self._finder = finder
        self._rest = rest
        self.block_tokens = finder.block_tokens
        self.depths = depths
        used = finder.index.tier_blocks
        self.lowest = max((tier for tier in CacheTier if used[tier]), default=CacheTier.DEVICE)
        self.names = cast(list[BlockHash], names)

    def mask(self, name: int, lowest: CacheTier) -> int:
        """Return the workers that have the block in tier ``lowest`` or a nearer one, or will have it soon."""
        index = self._finder.index
        at = name & index.shard_mask
        found = index.tiers[0][at].get(name, 0) | self._finder.predictions.masks.get(name, 0)
        for tier in range(1, lowest + 1):
            found |= index.tiers[tier][at].get(name, 0)
        return found

    def intervals(self, members: int, lowest: CacheTier = CacheTier.DEVICE) -> list[Interval]:
        """Return where the depths of ``members`` lie, shallow first; who has nothing is left out."""
        found: list[Interval] = []
        index, mask = self._finder.index, self.mask
        shards, pick, predicted = index.tiers[0], index.shard_mask, self._finder.predictions.masks
        low, hits, alive = 0, 0, members
        for depth, name in zip(self.depths, self.names, strict=True):
            if lowest:
                have = alive & mask(name, lowest)
            else:
                have = alive & (shards[name & pick].get(name, 0) | predicted.get(name, 0))
            if have != alive:
                if low:
                    found.append((low, depth, alive ^ have))
                if not have:
                    break
                alive = have
            low = depth
            hits += 1
        else:
            if low:
                found.append((low, low + 1, alive))
        if hits:
            index.touch(self.names[:hits])
        return found

    def refine(
        self, interval: Interval, members: int, lowest: CacheTier = CacheTier.DEVICE
    ) -> Iterator[Interval]:
        """Yield exact intervals (``high == low + 1``) for those of an interval's workers who are ``members``,
        the deepest first."""
        low, high, mask = interval
        mask &= members
        if not mask:
            return
        if high - low == 1:
            yield low, high, mask
            return
        if not isinstance(self._rest, Hashing):
            yield from self._refine_named(self._rest, (low, high, mask), lowest)
            return
        view, seed, block_bytes = self._rest
        index, predicted = self._finder.index, self._finder.predictions.masks
        shards, pick = index.tiers[0], index.shard_mask
        stack = [(low, high, mask, xxh3_64(view[: low * block_bytes], seed=seed))]
        while stack:
            low, high, mask, state = stack.pop()
            if high - low == 1:
                yield low, high, mask
                continue
            middle = (low + high) // 2
            further = state.copy()
            further.update(view[low * block_bytes : middle * block_bytes])
            name = further.intdigest()
            if lowest:
                have = mask & self.mask(name, lowest)
            else:
                have = mask & (shards[name & pick].get(name, 0) | predicted.get(name, 0))
            if have != mask:
                stack.append((low, middle, mask ^ have, state))
            if have:
                stack.append((middle, high, have, further))

    def _refine_named(
        self, known: Sequence[int], interval: Interval, lowest: CacheTier
    ) -> Iterator[Interval]:
        """``refine`` where all names are known."""
        stack = [interval]
        while stack:
            low, high, mask = stack.pop()
            if high - low == 1:
                yield low, high, mask
                continue
            middle = (low + high) // 2
            have = mask & self.mask(known[middle - 1], lowest)
            if have != mask:
                stack.append((low, middle, mask ^ have))
            if have:
                stack.append((middle, high, have))
