"""One JSON value that arrives in pieces: where it ends, and whether it still can be one.

Exists because arguments are sent on while they are written, and must be known to be JSON at every
character. Strict: what it takes, every JSON parser takes. It must not know calls.
"""

from __future__ import annotations

import re
from enum import Enum

MAX_DEPTH = 128
"""Deeper nesting is taken for broken: many programs that read JSON recurse."""

_BLANK = " \t\n\r"
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)", re.ASCII)
_SCALAR_RUN = re.compile(r"[-+.0-9A-Za-z]+", re.ASCII)
_ESCAPED = '"\\/bfnrt'
_HEX = "0123456789abcdefABCDEF"
_CLOSERS = {"{": "}", "[": "]"}


class State(Enum):
    """How far something is read."""

    OPEN = "open"
    DONE = "done"
    BROKEN = "broken"


class _Want(Enum):
    VALUE = "a value"
    FIRST_ITEM = "a value or ]"
    FIRST_KEY = "a key or }"
    KEY = "a key"
    COLON = ":"
    NEXT = ", or the end"


_VALUES = (_Want.VALUE, _Want.FIRST_ITEM)
_KEYS = (_Want.KEY, _Want.FIRST_KEY)


class JsonValue:
    """Reads one value, blanks before it included. ``state`` says how far it is."""

    __slots__ = ("_escape", "_in_string", "_scalar", "_stack", "_want", "state")

    def __init__(self) -> None:
        self.state = State.OPEN
        self._want = _Want.VALUE
        self._stack: list[str] = []
        self._in_string = False
        self._escape = 0  # 1: behind a backslash; 2 to 5: so many hexadecimal digits, less one, are missing
        self._scalar = ""

    def push(self, text: str, at: int = 0) -> int:
        """Read ``text`` from ``at``; return the place behind what belongs to the value. There the value is
        done, or broken by the character at that place, or the text ends."""
        size = len(text)
        while at < size and self.state is State.OPEN:
            if self._in_string:
                at = self._read_string(text, at)
            elif self._scalar:
                at = self._read_scalar(text, at)
            elif text[at] in _BLANK or self._take(text[at]):
                at += 1
            else:
                self.state = State.BROKEN
        return at

    def _take(self, char: str) -> bool:
        """Take one character between strings and scalars; False: it must not stand there."""
        want, stack = self._want, self._stack
        if char == '"' and want in (*_VALUES, *_KEYS):
            self._in_string = True
            self._want = _Want.COLON if want in _KEYS else _Want.NEXT
        elif char in "{[" and want in _VALUES and len(stack) < MAX_DEPTH:
            stack.append(char)
            self._want = _Want.FIRST_KEY if char == "{" else _Want.FIRST_ITEM
        elif (
            stack and char == _CLOSERS[stack[-1]] and want in (_Want.FIRST_KEY, _Want.FIRST_ITEM, _Want.NEXT)
        ):
            stack.pop()
            self._value_ended()
        elif char == "," and want is _Want.NEXT:
            self._want = _Want.KEY if stack[-1] == "{" else _Want.VALUE
        elif char == ":" and want is _Want.COLON:
            self._want = _Want.VALUE
        elif want in _VALUES and char in "-0123456789tfn":
            self._scalar = char
        else:
            return False
        return True

    def _value_ended(self) -> None:
        self._want = _Want.NEXT
        if not self._stack:
            self.state = State.DONE

    def _read_string(self, text: str, at: int) -> int:
        if self._escape:
            return self._read_escape(text, at)
        run = _PLAIN.match(text, at)
        if run is not None:
            return run.end()
        if text[at] == "\\":
            self._escape = 1
        elif text[at] == '"':
            self._in_string = False
            if self._want is _Want.NEXT:
                self._value_ended()
        else:
            self.state = State.BROKEN
            return at
        return at + 1

    def _read_escape(self, text: str, at: int) -> int:
        char = text[at]
        if self._escape == 1:
            if char == "u":
                self._escape = 5
                return at + 1
            good = char in _ESCAPED
        else:
            good = char in _HEX
        if not good:
            self.state = State.BROKEN
            return at
        self._escape = self._escape - 1 if self._escape > 2 else 0
        return at + 1

    def _read_scalar(self, text: str, at: int) -> int:
        run = _SCALAR_RUN.match(text, at)
        if run is not None:
            self._scalar += run[0]
            return run.end()
        if _SCALAR.fullmatch(self._scalar):
            self._scalar = ""
            self._value_ended()
        else:
            self.state = State.BROKEN
        return at
