"""Text to token ids, quickly and without holding the event loop.

Exists to join the ways there are: segments encoded before, words seen before, and the library's whole
pipeline, in a thread where it takes long. All give the same ids. It must not know templates, requests or
files.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import tokenizers

from tokenmill.errors import BadRequest
from tokenmill.protocol.block_hashes import pack_tokens, unpack_tokens
from tokenmill.serve.text.segments import Cutter, SegmentCache
from tokenmill.serve.text.words import WordEncoder

INLINE_CHARS = 2048
"""Up to this length new text takes the whole pipeline on the event loop: about 0.3 ms, a hop to a thread
0.1."""
INLINE_WORD_CHARS = 24_576
"""The same for new text whose words were seen before: about 0.8 ms."""
INLINE_NEW_WORDS = 256
"""Words of a text that may be new for that: about 0.8 ms more."""
_KEPT_CHARS = 32
"""Shorter segments cost as much to look up as to encode."""
_PROBES = ("a", "x y\n1")


class Encoded(NamedTuple):
    """A text's token ids: as a list, and packed as ``protocol.block_hashes.pack_tokens`` does."""

    ids: list[int]
    packed: bytes


class Encoder:
    """Encodes texts with one tokenizer. Its threads' queue holds at most one text a request under way."""

    def __init__(self, backend: tokenizers.Tokenizer, *, threads: int, cache_bytes: int) -> None:
        self._backend = backend
        self._cutter = Cutter(backend)
        self._words = WordEncoder.of(backend) if self._cutter.exact else None
        self._cache = SegmentCache(cache_bytes)
        self._frame = _frame(backend)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tokenize")

    def encode(self, text: str, *, add_special_tokens: bool) -> Encoded:
        """Return the ids of ``text``. Blocks the caller. Raises BadRequest for half a surrogate pair."""
        if add_special_tokens and self._frame is None:
            return _unpacked(self._whole([text], add_special_tokens=True)[0])
        parts = self._cutter.cut(text)
        packed, missing = self._quickly(parts, len(text), len(text))
        if missing:
            self._put(parts, packed, missing, self._whole([parts[at] for at in missing]))
        return self._joined(packed, add_special_tokens=add_special_tokens)

    async def encode_async(self, text: str, *, add_special_tokens: bool) -> Encoded:
        """Return the same, what takes long in a thread. Cancelled: the thread's result is dropped."""
        if add_special_tokens and self._frame is None:
            return _unpacked((await self._whole_async([text], add_special_tokens=True))[0])
        parts = self._cutter.cut(text)
        packed, missing = self._quickly(parts, INLINE_WORD_CHARS, INLINE_NEW_WORDS)
        if missing:
            self._put(parts, packed, missing, await self._whole_async([parts[at] for at in missing]))
        return self._joined(packed, add_special_tokens=add_special_tokens)

    def close(self) -> None:
        """End the threads. Encodes that have not begun are cancelled; one under way is waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _quickly(self, parts: list[str], most_chars: int, most_new: int) -> tuple[list[bytes], list[int]]:
        """Return the packed ids of all parts, and where they are missing still: what was not met before and
        cannot be encoded by words, or not within ``most_chars`` and ``most_new`` words."""
        packed: list[bytes] = []
        missing: list[int] = []
        words = self._words
        for at, part in enumerate(parts):
            if at & 1:
                packed.append(self._cutter.token(part))
                continue
            found = self._cache.get(part) if len(part) >= _KEPT_CHARS else None
            if found is None and words is not None and part.isascii() and len(part) <= most_chars:
                most_chars -= len(part)
                found = words.encode(part, most_new) if self._cutter.is_plain(part) else None
                if found is not None and len(part) >= _KEPT_CHARS:
                    self._cache.put(part, found)
            if found is None:
                missing.append(at)
            packed.append(found or b"")
        return packed, missing

    def _put(self, parts: list[str], packed: list[bytes], missing: list[int], found: list[bytes]) -> None:
        """Fill in what was missing, and keep it."""
        for at, new in zip(missing, found, strict=True):
            packed[at] = new
            if len(parts[at]) >= _KEPT_CHARS:
                self._cache.put(parts[at], new)

    def _joined(self, packed: list[bytes], *, add_special_tokens: bool) -> Encoded:
        if add_special_tokens and self._frame is not None:
            before, behind = self._frame
            packed = [before, *packed, behind]
        return _unpacked(b"".join(packed))

    async def _whole_async(self, texts: list[str], *, add_special_tokens: bool = False) -> list[bytes]:
        if sum(map(len, texts)) <= INLINE_CHARS:
            return self._whole(texts, add_special_tokens=add_special_tokens)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._pool, lambda: self._whole(texts, add_special_tokens=add_special_tokens)
        )

    def _whole(self, texts: list[str], *, add_special_tokens: bool = False) -> list[bytes]:
        """Encode by the library's whole pipeline."""
        try:
            # Releases the GIL and keeps no offsets, unlike ``Tokenizer.encode``.
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise BadRequest(
                "the text is not valid Unicode: it holds an unpaired surrogate; send valid UTF-8"
            ) from error
        return [pack_tokens(encoding.ids) for encoding in encodings]


def _unpacked(packed: bytes) -> Encoded:
    return Encoded(unpack_tokens(packed), packed)


def _frame(backend: tokenizers.Tokenizer) -> tuple[bytes, bytes] | None:
    """Return what a tokenizer puts before and behind every text, packed; None where it depends on the
    text."""
    frames = set()
    for probe in _PROBES:
        inner: list[int] = backend.encode(probe, add_special_tokens=False).ids
        whole: list[int] = backend.encode(probe, add_special_tokens=True).ids
        added = len(whole) - len(inner)
        before = next((at for at in range(added + 1) if whole[at : at + len(inner)] == inner), None)
        if before is None:
            return None
        frames.add((pack_tokens(whole[:before]), pack_tokens(whole[before + len(inner) :])))
    return frames.pop() if len(frames) == 1 else None
