"""Names of KV blocks for a trace's requests: equal where it says that prefixes are equal, else like no other.

Exists because traces tell lengths and shared prefixes, while scheduler and router go by block names
(``protocol.block_hashes``): names are made without any tokens. It must not know workers or time.

A name is a number of 60 bits or more. What follows a chain of prefix ids gets a multiplicative hash of the
chain; two chains of a trace with a million blocks collide with a probability of about one in a million. What
is like nothing else gets the next of a running number above all hashes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.protocol.block_hashes import BlockNames
from tokenmill.simulate.traces import Trace, TracedRequest

_MASK = (1 << 60) - 1
_FACTOR = 0x9E3779B97F4A7C15
_SALT = 0xD1B54A32D192ED03
_OWN_START = 1 << 60


class PromptBook:
    """Makes the prompts of one run."""

    def __init__(self, trace: Trace) -> None:
        self.prefix_block_tokens = trace.prefix_block_tokens
        self._next_own = _OWN_START

    def prompt(self, request: TracedRequest) -> Prompt:
        """Return a request's prompt."""
        return Prompt(self, request.prompt_tokens, request.prefix_ids)

    def own(self, count: int) -> range:
        """Return ``count`` names that nothing else in this run has."""
        start = self._next_own
        self._next_own = start + count
        return range(start, start + count)


class Prompt:
    """``NamedPrompt``: one prompt, or one with the output so far."""

    __slots__ = ("_book", "_named", "_prefix_ids", "tokens")

    def __init__(self, book: PromptBook, tokens: int, prefix_ids: tuple[int, ...]) -> None:
        self.tokens = tokens
        self._book = book
        self._prefix_ids = prefix_ids
        self._named: dict[int, list[int]] = {}

    def names(self, block_tokens: int) -> Sequence[int]:
        """See ``NamedPrompt``."""
        found = self._named.get(block_tokens)
        if found is None:
            found = self._named[block_tokens] = self._shared(block_tokens)
            missing = self.tokens // block_tokens - len(found)
            found.extend(self._book.own(missing))
        return found

    def continued(self, tokens: int) -> Prompt:
        """Return the prompt followed by ``tokens`` tokens that nothing else begins with."""
        longer = Prompt(self._book, self.tokens + tokens, ())
        for block_tokens, names in self._named.items():
            missing = longer.tokens // block_tokens - len(names)
            longer._named[block_tokens] = [*names, *self._book.own(missing)]
        return longer

    def sequence(self, block_tokens: int, output_tokens: int) -> BlockNames:
        """Return the names of the prompt and of at most ``output_tokens`` that will follow it."""
        names = self.names(block_tokens)
        more = (self.tokens + output_tokens) // block_tokens - len(names)
        return _SequenceNames(block_tokens, list(names), self._book.own(more))

    def _shared(self, block_tokens: int) -> list[int]:
        """Return the names of the full blocks that the prefix ids reach."""
        size = self._book.prefix_block_tokens
        found: list[int] = []
        chain = end = 0
        for at, prefix_id in enumerate(self._prefix_ids, start=1):
            chain = ((chain ^ (chain >> 29)) + prefix_id + _SALT) * _FACTOR & _MASK
            start, end = end, at * size // block_tokens
            found += range(chain, chain + end - start)
        del found[self.tokens // block_tokens :]
        return found


class _SequenceNames:
    """``BlockNames`` of a sequence whose blocks' names were all made beforehand."""

    __slots__ = ("_block_tokens", "_later", "_prompt_blocks", "hashes")

    def __init__(self, block_tokens: int, hashes: list[int], later: range) -> None:
        self.hashes = hashes
        self._block_tokens = block_tokens
        self._later = later
        self._prompt_blocks = len(hashes)

    def extend(self, tokens: Sequence[int]) -> list[int]:
        """See ``BlockNames``."""
        hashes, full = self.hashes, len(tokens) // self._block_tokens
        if full > len(hashes):
            first = len(hashes) - self._prompt_blocks
            hashes += self._later[first : full - self._prompt_blocks]
        return hashes
