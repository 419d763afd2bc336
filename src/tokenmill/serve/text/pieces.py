"""What each token adds to the text, worked out from a tokenizer's decoder.

``decode`` of a whole sequence is the truth, but it cannot be called for each new token: that would be
quadratic. Nearly all decoders in use are one of two machines over per-token pieces, and for those a
stream can be decoded exactly, token by token:

- ``BYTES``: every token is some bytes; the text is all bytes read as UTF-8, each malformed part replaced.
- ``TEXT``: every token is some text (the first may differ from the rest) or one raw byte; raw bytes
  that follow each other are read as UTF-8 together, all or nothing; leading characters may be stripped.

Anything else (CTC, suffix-marking BPE, unusual sequences) is ``WHOLE``: only ``decode`` knows.
Must not know about requests, streams or stop strings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from enum import Enum

import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from tokenmill.serve.text.stages import stage_of, stages_of

Piece = str | int | None
"""TEXT: a text, a raw byte (0 to 255), or None for a token that leaves no trace (skipped, unknown id)."""

_RAW_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2}|\+[0-9A-Fa-f])>", re.ASCII)
_PER_TOKEN = ("Replace", "Strip")
_POSITIONAL = ("Metaspace", "WordPiece")


class Machine(Enum):
    """How pieces become text."""

    BYTES = "bytes"
    TEXT = "text"
    WHOLE = "whole"


MAX_WHOLE = 32_768
"""Tokens' texts kept, at about 150 bytes; when there are more all are forgotten."""


class ByteTable(dict[int, bytes]):
    """Token id -> bytes. Filled on first use, so that loading is fast; bounded by the vocabulary.
    ``whole``: the same as text."""

    def __init__(self, pieces: Pieces, hidden: frozenset[int]) -> None:
        super().__init__()
        self.whole = WholeTable(pieces, hidden)
        self._pieces = pieces
        self._hidden = hidden

    def __missing__(self, token: int) -> bytes:
        if token in self._hidden:
            found: bytes | None = b""
        else:
            found = self._pieces.token_bytes(token)
        if found is None:
            return b""  # not stored: ids beyond the vocabulary are without number
        self[token] = found
        return found


class WholeTable(dict[int, str | None]):
    """Token id -> text, None for a token whose bytes are not whole characters. Filled on first use."""

    def __init__(self, pieces: Pieces, hidden: frozenset[int]) -> None:
        super().__init__()
        self._pieces = pieces
        self._hidden = hidden

    def __missing__(self, token: int) -> str | None:
        data = b"" if token in self._hidden else self._pieces.token_bytes(token)
        if data is None:
            return ""  # not stored: ids beyond the vocabulary are without number
        try:
            text: str | None = data.decode()
        except UnicodeDecodeError:
            text = None
        if len(self) >= MAX_WHOLE:
            self.clear()
        self[token] = text
        return text


class TextTable(dict[int, Piece]):
    """Token id -> piece, for a token that is not the first. Filled and bounded as ``ByteTable``."""

    def __init__(self, pieces: Pieces, hidden: frozenset[int]) -> None:
        super().__init__()
        self._pieces = pieces
        self._hidden = hidden

    def __missing__(self, token: int) -> Piece:
        content = self._pieces.content(token)
        if content is None:
            return None
        found = None if token in self._hidden else self._pieces.piece(content)
        self[token] = found
        return found


class Pieces:
    """The pieces of one tokenizer.

    ``machine`` says how they combine. For TEXT, up to ``strip_count`` characters equal to
    ``strip_char`` are taken off the beginning of the whole text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special_ids: frozenset[int]) -> None:
        self.machine = Machine.WHOLE
        self.strip_char = ""
        self.strip_count = 0
        self._backend = backend
        self._special_ids = special_ids
        self._joined_by_space = False
        self._raw_bytes = False
        self._render: tokenizers.decoders.Decoder | None = None
        self._byte_of: dict[str, int] = {}
        self._compile(stages_of(stage_of(backend.decoder)))
        self._tables: dict[frozenset[int], tuple[ByteTable, TextTable]] = {}

    def hidden(self, *, skip_special_tokens: bool, shown: frozenset[int] = frozenset()) -> frozenset[int]:
        """Return the tokens that leave no trace. ``shown``: special ones that do."""
        if not skip_special_tokens:
            return frozenset()
        return self._special_ids - shown if shown else self._special_ids

    def byte_table(self, hidden: frozenset[int]) -> ByteTable:
        """Return the table of the BYTES machine, shared by all streams that hide the same tokens."""
        return self._tables_without(hidden)[0]

    def text_table(self, hidden: frozenset[int]) -> TextTable:
        """Return the table of the TEXT machine, shared by all streams that hide the same tokens."""
        return self._tables_without(hidden)[1]

    def _tables_without(self, hidden: frozenset[int]) -> tuple[ByteTable, TextTable]:
        """A model hides all special tokens, none, or all but the marks of its tool calls: three tables."""
        tables = self._tables.get(hidden)
        if tables is None:
            tables = self._tables[hidden] = (ByteTable(self, hidden), TextTable(self, hidden))
        return tables

    def content(self, token: int) -> str | None:
        """Return the token as the vocabulary writes it, None for an id that names no token."""
        if not 0 <= token < 2**32:
            return None
        content: str | None = self._backend.id_to_token(token)
        return content

    def token_bytes(self, token: int) -> bytes | None:
        """Return the bytes that a token not at the beginning stands for, None for an unknown id."""
        content = self.content(token)
        if content is None:
            return None
        if self.machine is Machine.BYTES:
            text = self._rendered(content)
            try:
                return bytes(map(self._byte_of.__getitem__, text))
            except KeyError:  # not written in the byte alphabet: an added token, which stands for itself
                return text.encode()
        piece = self.piece(content)
        return bytes([piece]) if isinstance(piece, int) else piece.encode()

    def piece(self, content: str) -> str | int:
        """Return the TEXT piece of a token that is not the first."""
        text = self._rendered(content)
        raw = _RAW_BYTE.fullmatch(text) if self._raw_bytes else None
        return int(raw[1], 16) if raw else text

    def first_piece(self, token: int) -> str | int:
        """Return the TEXT piece of a known token that is the first of a text."""
        content = self.content(token) or ""
        if self._render is not None:
            text: str = self._render.decode([content])
        else:
            text = content
        raw = _RAW_BYTE.fullmatch(text) if self._raw_bytes else None
        return int(raw[1], 16) if raw else text

    def _rendered(self, content: str) -> str:
        if self._render is None:
            return f" {content}" if self._joined_by_space else content
        # Seen from behind another token, because decoders treat the first one differently.
        text: str = self._render.decode(["a", content])
        return text[len(self._render.decode(["a"])) :]

    def _compile(self, stages: Sequence[Mapping[str, object]]) -> None:
        if not stages:
            self.machine, self._joined_by_space = Machine.TEXT, True
            return
        kinds = [str(stage["type"]) for stage in stages]
        head = 0
        while head < len(kinds) and kinds[head] in _PER_TOKEN + _POSITIONAL:
            head += 1
        tail = [kind for kind in kinds[head:] if kind != "Fuse"]
        if tail == ["ByteLevel"] and not set(kinds[:head]) & set(_POSITIONAL):
            self.machine = Machine.BYTES
            self._byte_of = _byte_alphabet()
        elif self._is_text(stages[head:]):
            self.machine = Machine.TEXT
            self._raw_bytes = "ByteFallback" in tail
        if self.machine is not Machine.WHOLE and head:
            self._render = _build_decoder(stages[:head])

    def _is_text(self, stages: Sequence[Mapping[str, object]]) -> bool:
        """Accept [ByteFallback] [Fuse [Strip]], noting what Strip does to the fused text."""
        kinds = [stage["type"] for stage in stages]
        if kinds[:1] == ["ByteFallback"]:
            del kinds[0]
        strip = stages[-1] if kinds == ["Fuse", "Strip"] else None
        if strip is not None and strip["stop"] == 0:
            self.strip_char, self.strip_count = str(strip["content"]), int(str(strip["start"]))
            return True
        return kinds in ([], ["Fuse"])


def _build_decoder(stages: Sequence[Mapping[str, object]]) -> tokenizers.decoders.Decoder:
    """Make a decoder of some stages by way of the library's own file format."""
    shell = {
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "decoder": {"type": "Sequence", "decoders": list(stages)},
    }
    decoder: tokenizers.decoders.Decoder = tokenizers.Tokenizer.from_str(json.dumps(shell)).decoder
    return decoder


def _byte_alphabet() -> dict[str, int]:
    """Return the character that byte-level tokenizers write for each byte, the wrong way round.

    Printable Latin-1 bytes are written as themselves, the others as U+0100 and up in order.
    """
    alphabet = ByteLevel.alphabet()
    byte_of = {character: ord(character) for character in alphabet if ord(character) < 0x100}
    others = (byte for byte in range(0x100) if chr(byte) not in byte_of)
    byte_of.update(zip(sorted(set(alphabet) - set(byte_of)), others, strict=True))
    return byte_of
