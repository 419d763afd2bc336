"""Names for KV blocks: chained hashes of token ids, the same in every process of a factory.

A block's hash covers its own tokens and, through its parent's hash, all tokens before them, so that equal
hashes mean equal KV. It must not know who looks a block up or where its KV lies.

The hash is fast, not cryptographic: who knows another's prompt could construct a collision. Tenants that do
not trust each other are kept apart by ``cache_salt``, which a factory can make secret.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

TOKEN_BYTES = 4
"""A token id is hashed as an unsigned 32-bit little-endian integer."""


def root_hash(cache_salt: str = "") -> int:
    """Return the parent hash of a sequence's first block: xxh3_64 of the salt's UTF-8 bytes."""
    return xxh3_64_intdigest(cache_salt.encode())


def extend_hashes(hashes: list[int], tokens: Sequence[int], block_tokens: int, cache_salt: str = "") -> None:
    """Append the hashes of all full blocks of ``tokens`` that ``hashes`` does not cover yet.

    ``hashes[i]`` names block i: xxh3_64 over the parent's hash (8 bytes, little-endian) followed by the
    block's token ids. ``tokens``: the whole sequence; those of blocks already hashed must be unchanged.
    Raises OverflowError for a token id outside 0 .. 2**32 - 1.
    """
    first, full = len(hashes), len(tokens) // block_tokens
    if first >= full:
        return
    ids = array("I", tokens[first * block_tokens : full * block_tokens])
    if sys.byteorder == "big":
        ids.byteswap()
    data = ids.tobytes()
    parent = hashes[-1] if hashes else root_hash(cache_salt)
    block_bytes = block_tokens * TOKEN_BYTES
    for offset in range(0, len(data), block_bytes):
        parent = xxh3_64_intdigest(parent.to_bytes(8, "little") + data[offset : offset + block_bytes])
        hashes.append(parent)


def block_hashes(tokens: Sequence[int], block_tokens: int, cache_salt: str = "") -> list[int]:
    """Return the chained hashes of the full blocks of ``tokens``, first block first."""
    hashes: list[int] = []
    extend_hashes(hashes, tokens, block_tokens, cache_salt)
    return hashes
