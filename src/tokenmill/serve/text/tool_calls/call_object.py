"""``{"name": ..., "arguments": {...}}``, and lists of it, that come in pieces: what most formats are made of.

Exists so that formats share one reading of a call. It must not know what stands around the JSON.
"""

from __future__ import annotations

import json
from collections.abc import Container
from enum import Enum

from tokenmill.serve.text.tool_calls.json_value import JsonValue, State
from tokenmill.serve.text.tool_calls.parts import PartsOut

_BLANK = " \t\n\r"
_ARGUMENTS = ("arguments", "parameters")
_MEMBERS = ("name", *_ARGUMENTS, "type", "id")


class _Place(Enum):
    START = "before {"
    FIRST_KEY = "before a key or }"
    KEY = "in a key, or before it"
    COLON = "before :"
    VALUE = "in a value, or before it"
    NEXT = "before , or }"


class CallObject:
    """Tells ``out`` of one call: begun once its name and the brace of its arguments are there.

    Arguments may be an object, the JSON text of one, null, or missing; members with other names are left
    out. ``known``: of an object that may as well be no call, the names that a call can have; it then must
    have arguments, and nothing that calls do not have.
    """

    def __init__(self, out: PartsOut, *, known: Container[str] | None = None) -> None:
        self.state = State.OPEN
        self.began = False
        self._out = out
        self._known = known
        self._place = _Place.START
        self._value = JsonValue()
        self._read: list[str] = []  # of the present key or value
        self._key = ""
        self._name = ""
        self._arguments: str | None = None  # before the call could begin
        self._seen = False  # arguments, or their beginning
        self._holds = False  # they are no object, so that they are kept until they are whole

    def push(self, text: str, at: int = 0) -> int:
        """Read ``text`` from ``at``; return the place behind what belongs to the call, as ``JsonValue``."""
        size = len(text)
        while at < size and self.state is State.OPEN:
            if self._place is _Place.KEY or self._place is _Place.VALUE:
                at = self._inside(text, at)
            elif text[at] in _BLANK or self._take(text[at]):
                at += 1
            else:
                self.state = State.BROKEN
        return at

    def _take(self, char: str) -> bool:
        place = self._place
        if char == "{" and place is _Place.START:
            self._place = _Place.FIRST_KEY
        elif char == '"' and place is _Place.FIRST_KEY:
            self._begin(_Place.KEY)
            self._value.push(char)
            self._read.append(char)
        elif char == ":" and place is _Place.COLON:
            self._begin(_Place.VALUE)
        elif char == "," and place is _Place.NEXT:
            self._begin(_Place.KEY)
        elif char == "}" and place in (_Place.NEXT, _Place.FIRST_KEY):
            return self._end()
        else:
            return False
        return True

    def _begin(self, place: _Place) -> None:
        self._place, self._value, self._read = place, JsonValue(), []

    def _inside(self, text: str, at: int) -> int:
        end = self._value.push(text, at)
        piece = text[at:end]
        if self._place is _Place.VALUE and self._key in _ARGUMENTS:
            self._arguments_read(piece)
        else:
            self._read.append(piece)
        if self._value.state is State.BROKEN or (
            self._value.state is State.DONE
            and not (self._key_read() if self._is_key() else self._value_read())
        ):
            self.state = State.BROKEN
        return end

    def _is_key(self) -> bool:
        return self._place is _Place.KEY

    def _key_read(self) -> bool:
        key = json.loads("".join(self._read))
        if not isinstance(key, str):
            return False
        self._key = key
        self._place = _Place.COLON
        if self._known is not None and key not in _MEMBERS:
            return False
        return not (key in _ARGUMENTS and self._seen) and not (key == "name" and self._name)

    def _value_read(self) -> bool:
        self._place = _Place.NEXT
        if self._key == "name":
            name = json.loads("".join(self._read))
            if not isinstance(name, str) or not name or not _is_text(name):
                return False
            if self._known is not None and name not in self._known:
                return False
            self._name = name
            if self._arguments is not None:
                self._start(self._arguments)
        elif self._key in _ARGUMENTS:
            return self._arguments_whole()
        return True

    def _arguments_read(self, piece: str) -> None:
        """Send an object on as it comes; keep all else, and what comes before the name."""
        self._seen = True
        if self.began:
            self._out.arguments(piece)
            return
        if self._name and not self._holds and (text := piece.lstrip(_BLANK)):
            if text[0] == "{":
                self._start(text)
                return
            self._holds = True
        self._read.append(piece)

    def _arguments_whole(self) -> bool:
        if self.began:
            return True
        arguments = _as_object("".join(self._read).strip(_BLANK))
        if arguments is None:
            return False
        if self._name:
            self._start(arguments)
        else:
            self._arguments = arguments
        return True

    def _start(self, arguments: str) -> None:
        self.began = True
        self._out.began(self._name)
        self._out.arguments(arguments)

    def _end(self) -> bool:
        if not self._name or (self._known is not None and not self._seen):
            return False
        if not self.began:
            self._start("{}")
        self.state = State.DONE
        return True


def _is_text(text: str) -> bool:
    """False for half a surrogate pair, which JSON can write and nobody can send."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _as_object(text: str) -> str | None:
    """Return the JSON text of an object from a whole value: itself, null, or a string that holds one."""
    if text == "null":
        return "{}"
    if text.startswith('"'):
        inner: str = json.loads(text)
        value = JsonValue()
        end = value.push(inner)
        inner_is_whole = value.state is State.DONE and not inner[end:].strip(_BLANK)
        text = inner.strip(_BLANK) if inner_is_whole and _is_text(inner) else ""
    return text if text.startswith("{") else None


class CallList:
    """Tells ``out`` of each call of ``[{...}, {...}]``, and of what breaks the list. ``before``: what stood
    before the list and is content if its first call is none."""

    def __init__(self, out: PartsOut, before: str = "") -> None:
        self.state = State.OPEN
        self._out = out
        self._raw = [before]
        self._place = "["
        self._call: CallObject | None = None

    def push(self, text: str, at: int = 0) -> int:
        """Read ``text`` from ``at``; return the place behind what belongs to the list."""
        size = len(text)
        while at < size and self.state is State.OPEN:
            if self._call is not None:
                at = self._inside(self._call, text, at)
            elif text[at] in _BLANK or self._take(text[at]):
                self._raw.append(text[at])
                at += 1
            else:
                self._broken(began=False)
        return at

    def finish(self, *, cut: bool) -> None:
        """There is no more text: what is under way is broken, or ``cut``."""
        began = self._call is not None and self._call.began
        if self.state is State.OPEN and not (cut and began):
            self._broken(began=began)

    def _take(self, char: str) -> bool:
        if char == "{" and self._place in ("first", "item"):
            self._call = CallObject(self._out)
            self._call.push(char)
        elif char == "[" and self._place == "[":
            self._place = "first"
        elif char == "," and self._place == "next":
            self._place = "item"
        elif char == "]" and self._place in ("first", "next"):
            if self._place == "first":
                return False  # no call at all
            self.state = State.DONE
        else:
            return False
        return True

    def _inside(self, call: CallObject, text: str, at: int) -> int:
        end = call.push(text, at)
        self._raw.append(text[at:end])
        if call.state is State.DONE:
            self._out.ended()
            self._raw, self._call, self._place = [], None, "next"
        elif call.state is State.BROKEN:
            self._broken(began=call.began)
        return end

    def _broken(self, *, began: bool) -> None:
        self.state = State.BROKEN
        self._out.broken("".join(self._raw), began=began)
