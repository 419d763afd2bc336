"""Token ids to text while they arrive, exactly.

Each stream of tokens has one ``Detokenizer``. What it has returned is never taken back, so it returns
only text that no later token can change. Must not know about requests, stop strings or HTTP.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from tokenmill.serve.text.pieces import Machine, Pieces
from tokenmill.serve.text.tokenizer import Tokenizer

_LONGEST_INCOMPLETE_BYTES = 3


class Detokenizer:
    """Turns the tokens of one stream into text.

    Without ``prefix``: all that ``push`` returned plus what ``finish`` returns is
    ``tokenizer.decode(all tokens, skip_special_tokens=...)``, however the tokens were grouped.

    ``shown``: special tokens that are not skipped.

    With ``prefix`` (the prompt's ids): the same for prefix plus tokens, less the text that the prefix
    alone had settled. So ``decode(prefix)`` followed by the result is ``decode(prefix + tokens)``, save
    that a character begun at the prefix's end comes whole with the tokens that complete it. Costs the
    same for any length of prefix.

    Held back: with byte-level tokenizers an incomplete character, at most 3 bytes. With byte-fallback
    ones a run of raw-byte tokens until a token of another kind ends it, because one bad byte changes
    how the whole run is shown. With decoders that cannot be followed token by token
    (``tokenizer.streams_text`` is False) everything until ``finish``. All are bounded by the request's
    ``max_tokens``.
    """

    __slots__ = ("_stream", "push_each")

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        shown: frozenset[int] = frozenset(),
        prefix: Sequence[int] = (),
    ) -> None:
        self._stream: _Stream
        pieces = tokenizer.pieces
        hidden = pieces.hidden(skip_special_tokens=skip_special_tokens, shown=shown)
        if pieces.machine is Machine.BYTES:
            self._stream = _ByteStream(pieces, hidden, prefix)
        elif pieces.machine is Machine.TEXT:
            self._stream = _TextStream(pieces, hidden, prefix)
        else:
            self._stream = _WholeStream(tokenizer, hidden, prefix)
        self.push_each: Callable[[Sequence[int]], Sequence[str]] = self._stream.push_each
        """Take the next tokens and return the text that is certain with each: ``push``, one by one."""

    def push(self, tokens: Sequence[int]) -> str:
        """Take the next tokens (any number) and return the text that is now certain; may be empty."""
        return self._stream.push(tokens)

    def finish(self) -> str:
        """Return the text held back: there are no more tokens. A second call returns nothing more."""
        return self._stream.finish()


class _Stream(Protocol):
    def push(self, tokens: Sequence[int]) -> str: ...

    def push_each(self, tokens: Sequence[int]) -> Sequence[str]: ...

    def finish(self) -> str: ...


class _ByteStream:
    """All tokens' bytes read as UTF-8. Python replaces malformed parts as Rust does (Unicode's maximal
    subparts), so only an incomplete character at the end is state."""

    __slots__ = ("_incomplete", "_table", "_whole")

    def __init__(self, pieces: Pieces, hidden: frozenset[int], prefix: Sequence[int]) -> None:
        self._table = pieces.byte_table(hidden)
        self._whole = self._table.whole
        self._incomplete = b""
        # A lead byte starts a character whatever came before: the last 3 bytes determine the state.
        tail = b""
        for token in reversed(prefix):
            tail = self._table[token] + tail
            if len(tail) >= _LONGEST_INCOMPLETE_BYTES:
                break
        self._read(tail)

    def push(self, tokens: Sequence[int]) -> str:
        if len(tokens) == 1:  # the common case at low load, at twice the speed
            return self._read(self._table[tokens[0]])
        return self._read(b"".join(map(self._table.__getitem__, tokens)))

    def push_each(self, tokens: Sequence[int]) -> Sequence[str]:
        if not self._incomplete:
            # Nearly every token is whole characters and needs no decoding.
            if len(tokens) == 1 and (text := self._whole[tokens[0]]) is not None:
                return (text,)
            texts = [self._whole[token] for token in tokens]
            if None not in texts:
                return cast("list[str]", texts)
        return [self._read(self._table[token]) for token in tokens]

    def finish(self) -> str:
        text = self._incomplete.decode(errors="replace")
        self._incomplete = b""
        return text

    def _read(self, new: bytes) -> str:
        data = self._incomplete + new if self._incomplete else new
        text, used = codecs.utf_8_decode(data, "replace", False)
        if used != len(data) or self._incomplete:
            self._incomplete = data[used:]
        return text


class _TextStream:
    """Texts joined, with runs of raw bytes shown as their characters if the whole run is valid UTF-8 and
    as one replacement character a byte if not."""

    __slots__ = ("_pieces", "_run", "_started", "_strip_left", "_table")

    def __init__(self, pieces: Pieces, hidden: frozenset[int], prefix: Sequence[int]) -> None:
        self._pieces = pieces
        self._table = pieces.text_table(hidden)
        self._started = False
        self._strip_left = pieces.strip_count
        self._run = bytearray()
        self._skip(prefix)

    def push(self, tokens: Sequence[int]) -> str:
        out: list[str] = []
        if not self._started:
            tokens = self._start(tokens, out)
        for piece in map(self._table.__getitem__, tokens):
            if isinstance(piece, str):
                if self._run:
                    out.append(self._end_run())
                out.append(piece)
            elif piece is not None:
                self._run.append(piece)
        text = "".join(out)
        return self._strip(text) if self._strip_left and text else text

    def push_each(self, tokens: Sequence[int]) -> list[str]:
        return [self.push((token,)) for token in tokens]

    def finish(self) -> str:
        return self._strip(self._end_run())

    def _start(self, tokens: Sequence[int], out: list[str]) -> Sequence[int]:
        """Take the first token that leaves a trace; return the tokens behind it."""
        for at, token in enumerate(tokens):
            if self._table[token] is not None:
                piece = self._pieces.first_piece(token)
                if isinstance(piece, int):
                    self._run.append(piece)
                else:
                    out.append(piece)
                self._started = True
                return tokens[at + 1 :]
        return ()

    def _skip(self, prefix: Sequence[int]) -> None:
        """Come to the state behind ``prefix`` by its beginning and its end, not by reading all of it."""
        at = 0
        while at < len(prefix) and not (self._started and not self._strip_left):
            self.push(prefix[at : at + 1])
            at += 1
        tail: list[int] = []
        for behind in range(len(prefix) - 1, at - 1, -1):
            piece = self._table[prefix[behind]]
            if isinstance(piece, str):
                self._run.clear()
                break
            if piece is not None:
                tail.append(piece)
        self._run.extend(reversed(tail))

    def _end_run(self) -> str:
        run, self._run = self._run, bytearray()
        try:
            return run.decode()
        except UnicodeDecodeError:
            return "\N{REPLACEMENT CHARACTER}" * len(run)

    def _strip(self, text: str) -> str:
        at = 0
        while at < len(text) and self._strip_left:
            if text[at] != self._pieces.strip_char:
                self._strip_left = 0
                break
            at += 1
            self._strip_left -= 1
        return text[at:]


class _WholeStream:
    """For decoders that cannot be followed: everything at the end."""

    __slots__ = ("_hidden", "_settled_chars", "_tokenizer", "_tokens")

    def __init__(self, tokenizer: Tokenizer, hidden: frozenset[int], prefix: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._tokens: list[int] = []
        self.push(prefix)
        self._settled_chars = len(tokenizer.decode(self._tokens, skip_special_tokens=False))

    def push(self, tokens: Sequence[int]) -> str:
        self._tokens.extend([token for token in tokens if token not in self._hidden])
        return ""

    def push_each(self, tokens: Sequence[int]) -> list[str]:
        self.push(tokens)
        return [""] * len(tokens)

    def finish(self) -> str:
        text = self._tokenizer.decode(self._tokens, skip_special_tokens=False)
        new = text[self._settled_chars :]
        self._settled_chars = len(text)
        return new
