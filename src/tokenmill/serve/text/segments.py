"""A text cut where no token can reach across: at the tokens that were added to a vocabulary.

Exists because a chat grows at its end: what stands between two special tokens (a turn, most often) has the
same ids each time, so that only new turns need to be encoded. It must not know templates, roles or
requests.
"""

from __future__ import annotations

import re
import threading

import tokenizers

from tokenmill.protocol.block_hashes import pack_tokens
from tokenmill.serve.text.stages import stage_of, stages_of

_BY_PIECE = frozenset(
    {
        "ByteLevel", "Split", "Digits", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Punctuation",
        "UnicodeScripts", "CharDelimiterSplit", "FixedLength",
    }
)  # fmt: skip
"""Pre-tokenizers that treat a piece alike wherever it stands."""
_ENTRY_BYTES = 250
"""What a kept segment costs beside its text and ids."""


class Cutter:
    """Cuts texts at added tokens. ``exact`` False: this tokenizer lets a token's neighbours matter, or what
    stands first; a text is one segment then."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        added = backend.get_added_tokens_decoder()
        self.exact = not backend.encode_special_tokens and _by_piece(backend)
        self._ids: dict[str, bytes] = {}
        later: list[str] = []
        for token, entry in added.items():
            if not entry.content:
                continue
            if entry.lstrip or entry.rstrip or entry.single_word:
                self.exact = False
            if entry.normalized:
                later.append(entry.content)
            else:
                self._ids[entry.content] = pack_tokens([token])
        self._find = _any_of(list(self._ids))
        # Looked for after normalizing, in what the others leave over.
        self._find_later = _any_of(later)

    def cut(self, text: str) -> list[str]:
        """Return segments and the tokens between them, in turn, beginning and ending with a segment."""
        return self._find.split(text) if self.exact and self._find is not None else [text]

    def token(self, content: str) -> bytes:
        """Return an added token's id, packed."""
        return self._ids[content]

    def is_plain(self, segment: str) -> bool:
        """No added token stands in this segment."""
        return self._find_later is None or self._find_later.search(segment) is None


class SegmentCache:
    """Segment -> packed ids, the least recently used going first. Bounded by ``max_bytes``, which counts
    text, ids and what Python needs for them. Safe to call from several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.used_bytes = 0
        self._max_bytes = max_bytes
        self._kept: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, segment: str) -> bytes | None:
        """Return the packed ids of a segment that is kept."""
        with self._lock:
            found = self._kept.pop(segment, None)
            if found is not None:
                self._kept[segment] = found
            return found

    def put(self, segment: str, packed: bytes) -> None:
        """Keep a segment; one above an eighth of the room is not kept, as it would push all others out."""
        cost = _cost(segment, packed)
        if cost > self._max_bytes // 8:
            return
        with self._lock:
            if self._kept.pop(segment, None) is None:
                self.used_bytes += cost
            self._kept[segment] = packed
            while self.used_bytes > self._max_bytes:
                oldest = next(iter(self._kept))
                self.used_bytes -= _cost(oldest, self._kept.pop(oldest))


def _cost(segment: str, packed: bytes) -> int:
    widest = 1 if segment.isascii() else 4
    return widest * len(segment) + len(packed) + _ENTRY_BYTES


def _any_of(contents: list[str]) -> re.Pattern[str] | None:
    """Return a pattern that finds the leftmost of these, the longest where several begin there."""
    if not contents:
        return None
    return re.compile("(" + "|".join(map(re.escape, sorted(contents, key=len, reverse=True))) + ")")


def _by_piece(backend: tokenizers.Tokenizer) -> bool:
    for stage in stages_of(stage_of(backend.pre_tokenizer)):
        kind = stage["type"]
        if kind == "Metaspace":
            if stage.get("prepend_scheme", "always") == "first":
                return False
        elif kind not in _BY_PIECE:
            return False
    return True
