"""Names for KV blocks: a hash of all tokens up to the block's end, the same in every process of a factory.

Exists as vocabulary between workers, which name what they cache, and routers, which look it up. It must not
know who looks a block up or where its KV lies.

A name is xxh3_64 over the token ids of the whole prefix (unsigned 32-bit little-endian), with a seed made of
the cache salt. Equal names mean equal KV. Since a name depends on a position and not on the way there, a
reader who wants the name at one depth hashes up to it in one go, without naming the blocks before it; names
agree where workers cut their blocks differently.

The hash is fast, not cryptographic: who knows another's prompt could construct a collision. Tenants that do
not trust each other are kept apart by ``cache_salt``, which a factory can make secret.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from typing import Protocol

from xxhash import xxh3_64, xxh3_64_intdigest

TOKEN_BYTES = 4
"""A token id is hashed as an unsigned 32-bit little-endian integer."""


def prefix_seed(cache_salt: str = "") -> int:
    """Return the seed of all names under a salt: 0 without one, else xxh3_64 of its UTF-8 bytes."""
    return xxh3_64_intdigest(cache_salt.encode()) if cache_salt else 0


def pack_tokens(tokens: Sequence[int]) -> bytes:
    """Return token ids as they are hashed. Raises OverflowError for one outside 0 .. 2**32 - 1."""
    ids = array("I", tokens)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tobytes()


def token_array(packed: bytes) -> array[int]:
    """Return the token ids that ``pack_tokens`` packed, at four bytes each: a ninth of what a list takes."""
    ids = array("I", packed)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def unpack_tokens(packed: bytes) -> list[int]:
    """Return the token ids that ``pack_tokens`` packed."""
    return token_array(packed).tolist()


class NamedPrompt(Protocol):
    """A prompt whose blocks have names already, so that nobody needs its tokens."""

    @property
    def tokens(self) -> int:
        """Its length."""
        ...

    def names(self, block_tokens: int) -> Sequence[int]:
        """Return the names of all its full blocks of that size, the first block's first."""
        ...


class BlockNames(Protocol):
    """The names of one growing sequence's full blocks, however they are made."""

    hashes: list[int]
    """Of the blocks named so far, the first block's first."""

    def extend(self, tokens: Sequence[int]) -> list[int]:
        """Name all full blocks of ``tokens``, the whole sequence, that have no name yet; return all names."""
        ...


class PrefixNames:
    """The names of one growing sequence's full blocks. ``hashes[i]`` names block i."""

    __slots__ = ("_block_tokens", "_state", "hashes")

    def __init__(self, block_tokens: int, cache_salt: str = "") -> None:
        self.hashes: list[int] = []
        self._block_tokens = block_tokens
        self._state = xxh3_64(seed=prefix_seed(cache_salt))

    def extend(self, tokens: Sequence[int]) -> list[int]:
        """Name all full blocks of ``tokens`` that have no name yet, and return all names.

        ``tokens``: the whole sequence; those of blocks named before must be unchanged. Raises OverflowError
        for a token id outside 0 .. 2**32 - 1.
        """
        block_tokens, hashes = self._block_tokens, self.hashes
        first, full = len(hashes), len(tokens) // block_tokens
        if first < full:
            data = memoryview(pack_tokens(tokens[first * block_tokens : full * block_tokens]))
            update, digest, append = self._state.update, self._state.intdigest, hashes.append
            block_bytes = block_tokens * TOKEN_BYTES
            for offset in range(0, len(data), block_bytes):
                update(data[offset : offset + block_bytes])
                append(digest())
        return hashes


def block_hashes(tokens: Sequence[int], block_tokens: int, cache_salt: str = "") -> list[int]:
    """Return the names of the full blocks of ``tokens``, first block first."""
    return PrefixNames(block_tokens, cache_salt).extend(tokens)
