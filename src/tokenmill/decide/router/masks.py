"""Sets of workers as the bits of a number, and back.

Exists because a set of 128 workers is then one small number that dicts can hold and ``&`` can cut. It must
not know what a slot stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

_FEW = 12
"""Below this, taking bit by bit is faster than going over all (0.1 us each against 1.7 us)."""

_DIGITS = bytes.maketrans(b"01", b"\x00\x01")


def slots_of(mask: int) -> Sequence[int]:
    """Return the numbers of the bits that are set, in no particular order."""
    if mask.bit_count() < _FEW:
        slots = []
        while mask:
            slot = mask.bit_length() - 1
            slots.append(slot)
            mask ^= 1 << slot
        return slots
    digits = format(mask, "b")[::-1].encode().translate(_DIGITS)
    return list(compress(range(len(digits)), digits))


def mask_of(slots: Sequence[int]) -> int:
    """Return the number whose bits are ``slots``."""
    mask = 0
    for slot in slots:
        mask |= 1 << slot
    return mask
