"""Free block ids, kept as maximal runs of neighbours, so that one allocation gets few pieces.

Executors and transfers copy neighbouring blocks in one go. It must not know what blocks hold or who asks.
Segregated fit with boundary tags: every operation is O(1) per block, whatever the pool's size.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise


class FreeRuns:
    """A set of block ids below ``blocks``, all free at first."""

    def __init__(self, blocks: int) -> None:
        self._end_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        # Bucket k holds the starts of runs of 2**k to 2**(k+1) - 1 blocks; dicts serve as ordered sets.
        self._buckets: list[dict[int, None]] = [{} for _ in range(blocks.bit_length())]
        self.count = blocks
        """How many are free."""
        self._insert(0, blocks)

    def __len__(self) -> int:
        return self.count

    def runs(self) -> list[tuple[int, int]]:
        """Return all runs as (first block, one past the last), in order."""
        return sorted(self._end_of.items())

    def add(self, block: int) -> None:
        """Make ``block`` free, joining it with the runs on both sides."""
        self._add_run(block, block + 1)

    def add_all(self, blocks: Iterable[int]) -> None:
        """Make ``blocks`` free; neighbours among them cost as much as one."""
        ordered = sorted(blocks)
        start, count = 0, len(ordered)
        while start < count:
            end = _run_end(ordered, start)
            self._add_run(ordered[start], ordered[end - 1] + 1)
            start = end

    def _add_run(self, start: int, end: int) -> None:
        self.count += end - start
        if (before := self._start_of.get(start)) is not None:
            self._remove(before, start)
            start = before
        if (after := self._end_of.get(end)) is not None:
            self._remove(end, after)
            end = after
        self._insert(start, end)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Remove and return ``count`` blocks, in as few runs as is cheap to find.

        ``after``: the block that the first one should follow, to lengthen what the caller already has.
        Raises ValueError when fewer than ``count`` are free.
        """
        if count > self.count:
            raise ValueError(f"{count} blocks asked for, {self.count} free")
        taken: list[int] = []
        if count and after is not None and (end := self._end_of.get(after + 1)) is not None:
            self._carve(after + 1, end, count, taken)
        while len(taken) < count:
            start = self._pick(count - len(taken))
            self._carve(start, self._end_of[start], count - len(taken), taken)
        return taken

    def _carve(self, start: int, end: int, count: int, into: list[int]) -> None:
        cut = min(end, start + count)
        self._remove(start, end)
        self._insert(cut, end)
        self.count -= cut - start
        into.extend(range(start, cut))

    def _pick(self, count: int) -> int:
        """Return the start of a small run that surely holds ``count`` blocks, else of a longest one."""
        fits = (count - 1).bit_length()
        for bucket in self._buckets[fits:]:
            if bucket:
                return next(reversed(bucket))
        for bucket in reversed(self._buckets[:fits]):
            if bucket:
                return next(reversed(bucket))
        raise AssertionError("the count of free blocks disagrees with the runs")

    def _insert(self, start: int, end: int) -> None:
        if start < end:
            self._end_of[start] = end
            self._start_of[end] = start
            self._buckets[(end - start).bit_length() - 1][start] = None

    def _remove(self, start: int, end: int) -> None:
        del self._end_of[start]
        del self._start_of[end]
        del self._buckets[(end - start).bit_length() - 1][start]

    def validate(self) -> None:
        """Check the maps against each other; raises AssertionError."""
        runs = self.runs()
        assert sum(end - start for start, end in runs) == self.count, "count of free blocks"
        assert {end: start for start, end in runs} == self._start_of, "ends of runs"
        for (_, end), (start, _) in pairwise(runs):
            assert end < start, f"runs meet or overlap at block {start}"
        for size_log2, bucket in enumerate(self._buckets):
            for start in bucket:
                length = self._end_of[start] - start
                assert length.bit_length() - 1 == size_log2, f"run at {start} is in the wrong bucket"
        assert sum(map(len, self._buckets)) == len(runs), "runs missing from the buckets"


def _run_end(ordered: list[int], start: int) -> int:
    """Return where the neighbours that begin at place ``start`` end: mostly at the end, else found by
    halving."""
    low, high = start, len(ordered) - 1
    before = ordered[start] - start
    if ordered[high] - high == before:
        return high + 1
    while low < high:
        middle = (low + high + 1) // 2
        if ordered[middle] - middle == before:
            low = middle
        else:
            high = middle - 1
    return low + 1
