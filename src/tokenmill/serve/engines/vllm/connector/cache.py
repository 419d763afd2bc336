"""What vLLM's paged KV cache looks like from outside: planes, pages, groups of layers, windows.

A block of the cache is one page in each plane; layers of different groups lie over each other in the same
planes, which is sound because a block belongs to one group at a time. So whichever group a block belongs to,
to move it is to move its page in every plane. It must not know vLLM or torch: it runs in the engine's
environment and in ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.serve.transfer.base import KvLayout

NULL_BLOCK = 0
"""What stands in a block table where there is no block: vLLM's own."""


class CacheGroup(msgspec.Struct, frozen=True):
    """Layers that share a block table. ``window``: tokens that one looks back on, itself included; 0: all."""

    block_tokens: int
    window: int = 0

    def needed(self, tokens: int) -> range:
        """Return which places of the block table are needed to go on behind the first ``tokens`` tokens."""
        first = max(0, tokens - self.window + 1) if self.window else 0
        return range(first // self.block_tokens, -(-tokens // self.block_tokens))


class Region(msgspec.Struct, frozen=True):
    """Where a layer lies in the cache's one allocation, in bytes: the allocation's size, where the layer's
    first block begins, and from one of its blocks to the next."""

    size_bytes: int
    offset: int
    block_stride: int


def memory_layout(regions: Sequence[Region], blocks: int) -> KvLayout:
    """Return the cache's layout with one page for a token: a transfer moves pages, unread.

    Raises ConfigError for a cache whose layers have pages of different sizes.
    """
    if not regions:
        raise ConfigError("the model keeps no KV cache on this worker: there is nothing to hand over")
    size, page = regions[0].size_bytes, regions[0].block_stride
    plane = page * blocks
    for region in regions:
        alike = (region.size_bytes, region.block_stride) == (size, page)
        if not alike or size % plane or region.offset >= size:
            raise ConfigError(
                "layers with KV pages of different sizes cannot be handed over by this connector "
                f"({region} beside {regions[0]}, {blocks} blocks): use kv_connector: nixl"
            )
    return KvLayout(planes=size // plane, block_tokens=1, token_bytes=page, dtype="bytes")


def offered_tokens(prompt_tokens: int) -> int:
    """Return how many of a prompt's tokens are handed over: the taker computes the last one itself, to sample
    the next from it, and so needs the window that is in front of it."""
    return prompt_tokens - 1


def held_back(group: CacheGroup, prompt_tokens: int) -> range:
    """Return the places that a taker needs, but that the giver's vLLM drops once the prompt is computed."""
    needed = group.needed(offered_tokens(prompt_tokens))
    return range(needed.start, group.needed(prompt_tokens).start)


def complete(blocks: Iterable[int]) -> bool:
    """Whether there is a block at each place."""
    return NULL_BLOCK not in blocks
