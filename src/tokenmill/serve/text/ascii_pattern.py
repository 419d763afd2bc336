"""A pre-tokenizer's regular expression, rewritten for Python's ``re`` and for texts of ASCII characters
alone.

Exists because checkpoints write their patterns for Oniguruma, with Unicode properties that ``re`` does not
have. For ASCII texts a property is a handful of characters, and what is left means the same in both. What
is not surely the same is refused, never guessed. It must not know tokenizers or vocabularies.
"""

from __future__ import annotations

import re
import unicodedata

_ASCII = frozenset(range(128))
_SPACE = frozenset(map(ord, "\t\n\v\f\r "))
_DIGIT = frozenset(map(ord, "0123456789"))
_LETTER = frozenset(at for at in _ASCII if chr(at).isalpha())
_ESCAPED_CHAR = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "e": 27}
_ESCAPED_CLASS = {"s": _SPACE, "d": _DIGIT, "w": _LETTER | _DIGIT | {ord("_")}}
_ATOMIC = re.compile(r"\?(?:[:=!>]|<=|<!|i:)")
_QUANTIFIER = re.compile(r"\{(?:\d+(?:,\d*)?|,\d+)\}")


class UnknownPattern(Exception):
    """The pattern holds something that is not surely the same in both engines."""


def translate(pattern: str) -> re.Pattern[str]:
    """Return a pattern that finds in an ASCII text what ``pattern`` finds under Oniguruma.

    It has no groups, so that ``findall`` gives whole matches. Raises UnknownPattern.
    """
    reader = _Reader(pattern)
    source = reader.run()
    try:
        return re.compile(source, re.ASCII)
    except (re.error, RecursionError, OverflowError) as error:
        raise UnknownPattern(f"{pattern!r}: {error}") from error


class _Reader:
    """Walks over the pattern once, writing its translation."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0

    def run(self) -> str:
        out: list[str] = []
        pattern = self._pattern
        while self._at < len(pattern):
            char = pattern[self._at]
            if char == "[":
                self._at += 1
                out.append(_written(self._class()))
            elif char == "\\":
                self._at += 1
                out.append(_written(self._escape()))
            elif char == "(":
                out.append(self._group())
            elif char == "{":
                out.append(self._counted())
            elif char in "|)*+?":
                self._at += 1
                out.append(char)
            elif char in "^$.]}" or not char.isascii():
                raise self._unknown()
            else:
                self._at += 1
                out.append(re.escape(char))
        return "".join(out)

    def _group(self) -> str:
        """``(`` and what says the group's kind; a capturing one becomes one that does not."""
        self._at += 1
        if not self._pattern.startswith("?", self._at):
            return "(?:"
        kind = _ATOMIC.match(self._pattern, self._at)
        if kind is None:
            raise self._unknown()
        self._at = kind.end()
        return "(" + kind[0]

    def _counted(self) -> str:
        """``{1,3}``. With a ``+`` or ``?`` behind it the engines differ."""
        found = _QUANTIFIER.match(self._pattern, self._at)
        if found is None or self._pattern[found.end() : found.end() + 1] in ("+", "?", "*", "{"):
            raise self._unknown()
        self._at = found.end()
        return found[0]

    def _class(self) -> frozenset[int]:
        """The ASCII characters of a bracket expression; ``_at`` is behind the opening bracket."""
        pattern = self._pattern
        negated = pattern.startswith("^", self._at)
        self._at += negated
        members: set[int] = set()
        first = True
        while first or not pattern.startswith("]", self._at):
            first = False
            low = self._member()
            if pattern.startswith("-", self._at) and not pattern.startswith("-]", self._at):
                self._at += 1
                high = self._member()
                if len(low) != 1 or len(high) != 1:
                    raise self._unknown()
                members.update(range(min(low), max(high) + 1))
            else:
                members |= low
        self._at += 1
        return _ASCII - members if negated else frozenset(members & _ASCII)

    def _member(self) -> frozenset[int]:
        if self._at >= len(self._pattern):
            raise self._unknown()
        char = self._pattern[self._at]
        if char in "[]" or self._pattern.startswith("&&", self._at):
            raise self._unknown()
        self._at += 1
        return self._escape() if char == "\\" else frozenset({ord(char)})

    def _escape(self) -> frozenset[int]:
        """The characters that an escape stands for; ``_at`` is behind the backslash."""
        if self._at >= len(self._pattern):
            raise self._unknown()
        char = self._pattern[self._at]
        self._at += 1
        if char in "pP":
            return self._property(negated=char == "P")
        if char in _ESCAPED_CHAR:
            return frozenset({_ESCAPED_CHAR[char]})
        if char.lower() in _ESCAPED_CLASS:
            found = _ESCAPED_CLASS[char.lower()]
            return found if char.islower() else _ASCII - found
        if char.isalnum() or not char.isascii():
            raise self._unknown()
        return frozenset({ord(char)})

    def _property(self, *, negated: bool) -> frozenset[int]:
        found = re.compile(r"\{(\^?)([A-Z][a-z]?)\}").match(self._pattern, self._at)
        if found is None:
            raise self._unknown()
        self._at = found.end()
        name = found[2]
        if name[0] not in "LMNPSZC":
            raise self._unknown()
        members = frozenset(at for at in _ASCII if unicodedata.category(chr(at)).startswith(name))
        return _ASCII - members if negated != bool(found[1]) else members

    def _unknown(self) -> UnknownPattern:
        return UnknownPattern(
            f"{self._pattern!r}, near {self._pattern[max(0, self._at - 2) : self._at + 6]!r}"
        )


def _written(members: frozenset[int]) -> str:
    """A class of these characters; one that is empty matches nowhere."""
    if not members:
        return "(?!)"
    return "[" + "".join(f"\\x{member:02x}" for member in sorted(members)) + "]"
