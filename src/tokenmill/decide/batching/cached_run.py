"""Cached blocks in a row that share one fate, handled as one.

Exists because a prompt's blocks come, are found and go together: a pool that keeps books on each block spends
its time on books. It must not know who holds a run or when it goes.
"""

from __future__ import annotations


class CachedRun:
    """Named blocks, each the parent of the next, that the same sequences hold and that were found alike.

    ``names[i]`` names ``blocks[i]``; ``parent``: the name before the first. ``holders``: how many hold all
    of them; 0: they may be evicted, the last of them first. ``found``: a sequence that did not compute them
    has taken them. ``age``: of the last block, when nobody holds them; each block before it is one younger.
    """

    __slots__ = ("age", "blocks", "found", "holders", "names", "parent")

    def __init__(self, names: list[int], blocks: list[int], parent: int | None) -> None:
        self.names = names
        self.blocks = blocks
        self.parent = parent
        self.holders = 1
        self.found = False
        self.age = 0

    def __len__(self) -> int:
        return len(self.blocks)

    def named_alike(self, names: list[int], at: int) -> int:
        """Return how many of its names stand in ``names``, a sequence's, from place ``at`` on."""
        return _common(self.names, names, at)

    def placed_alike(self, blocks: list[int], at: int) -> int:
        """Return how many of its blocks stand in ``blocks``, a block table, from place ``at`` on."""
        return _common(self.blocks, blocks, at)

    def split(self, at: int) -> CachedRun:
        """Keep what is from place ``at`` on; return a run of what is before."""
        head = CachedRun(self.names[:at], self.blocks[:at], self.parent)
        head.holders, head.found = self.holders, self.found
        head.age = self.age + len(self.blocks) - at
        self.parent = head.names[-1]
        del self.names[:at]
        del self.blocks[:at]
        return head

    def absorbs(self, later: CachedRun) -> bool:
        """Take the blocks of ``later`` in, if they are the next of the chain and were found alike."""
        if later.parent != self.names[-1] or later.found is not self.found:
            return False
        self.names += later.names
        self.blocks += later.blocks
        return True

    def cut(self, count: int) -> tuple[list[int], list[int]]:
        """Drop the last ``count`` blocks; return their names, the last first, and the blocks in order."""
        left = len(self.blocks) - count
        names, blocks = self.names[left:], self.blocks[left:]
        del self.names[left:], self.blocks[left:]
        self.age += count
        names.reverse()
        return names, blocks


def _common(own: list[int], others: list[int], at: int) -> int:
    """Return how long ``own`` and ``others`` from place ``at`` on are equal.

    A name stands for all before it, and a named block stands behind the same one in every table: so a look at
    the last tells of all, and the place where two chains part is found by halving.
    """
    low, high = 0, min(len(own), len(others) - at)
    if own[high - 1] == others[at + high - 1]:
        return high
    while low < high:
        middle = (low + high) // 2
        if own[middle] == others[at + middle]:
            low = middle + 1
        else:
            high = middle
    return low
