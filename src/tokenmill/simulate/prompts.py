"""Token ids for a trace's requests: equal where it says that prefixes are equal, else unlike all others.

Exists because traces tell lengths and shared prefixes, while scheduler and router work on tokens. It must not
know workers or time.
"""

from __future__ import annotations

import sys
from array import array

from tokenmill.protocol.block_hashes import TOKEN_BYTES
from tokenmill.simulate.traces import Trace, TracedRequest

OWN_TOKENS_START = 1 << 31
"""Ids from here on are handed out once each: prompts that share nothing, and outputs."""

_ID_LIMIT = 1 << 32


class PromptMaker:
    """Makes prompts as packed token ids (``protocol.block_hashes.pack_tokens``): no work for each token."""

    def __init__(self, trace: Trace) -> None:
        self._block_tokens = trace.prefix_block_tokens
        self._next_own = OWN_TOKENS_START
        largest = max((max(r.prefix_ids) for r in trace.requests if r.prefix_ids), default=0)
        if (largest + 1) * self._block_tokens > OWN_TOKENS_START:
            raise ValueError(f"prefix id {largest} is too large to give each of its tokens an id")

    def packed(self, request: TracedRequest) -> bytes:
        """Return the prompt's token ids, unsigned 32-bit little-endian.

        The block with id n holds tokens n * block .. n * block + block - 1: an id names its block's content.
        """
        size = self._block_tokens
        if not request.prefix_ids:
            ids = array("I", self.own(request.prompt_tokens))
        else:
            ids = array("I")
            for prefix_id in request.prefix_ids:
                ids.extend(range(prefix_id * size, prefix_id * size + size))
            del ids[request.prompt_tokens :]
        if sys.byteorder == "big":
            ids.byteswap()
        return ids.tobytes()

    def own(self, count: int) -> range:
        """Return ``count`` token ids that nothing else in this run has. Raises ValueError: none are left."""
        start, self._next_own = self._next_own, self._next_own + count
        if self._next_own > _ID_LIMIT:
            raise ValueError("the trace has more tokens than there are 32-bit ids: simulate a part of it")
        return range(start, start + count)


def unpack(packed: bytes) -> list[int]:
    """Return packed token ids as a list."""
    ids = array("I", packed)
    assert ids.itemsize == TOKEN_BYTES
    if sys.byteorder == "big":
        ids.byteswap()
    return ids.tolist()
