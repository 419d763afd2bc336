"""What a parser makes of a model's text, and what every parser has.

Must not know any one format, nor OpenAI's JSON.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegan:
    """A call of the function ``name``; what follows belongs to it until it ended or broke."""

    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class ArgumentsMade:
    """The next piece of the call's arguments: a JSON object as the model wrote it."""

    text: str


@dataclass(frozen=True, slots=True)
class CallEnded:
    """The call is whole: its arguments are valid JSON."""


@dataclass(frozen=True, slots=True)
class CallBroken:
    """The call that began is none: its JSON is wrong. ``text``: all that the model wrote of it, which is
    content."""

    text: str


Part = Content | CallBegan | ArgumentsMade | CallEnded | CallBroken


class ToolCallParser(Protocol):
    """Reads one choice. All parts of all pushes, joined, do not depend on how the text was cut."""

    def push(self, text: str) -> list[Part]:
        """Take the next text and return what is certain with it."""
        ...

    def finish(self, *, cut: bool) -> list[Part]:
        """Return what was held back: there is no more text. ``cut``: the model had more to say, so that a
        call under way stays what it is, without an end; else it is broken."""
        ...


class PartsOut:
    """Collects parts for a parser. Whitespace around calls belongs to the format and is left out.

    ``new_id``: makes a call's id. ``most_calls``: further calls are read and left out; None: any number.
    Held back: whitespace at the end of the content, until other text shows that it is content.
    """

    __slots__ = ("_any", "_blank", "_lead", "_left", "_muted", "_new_id", "_parts")

    def __init__(self, new_id: Callable[[], str], most_calls: int | None = None) -> None:
        self._new_id = new_id
        self._left = most_calls
        self._parts: list[Part] = []
        self._blank = ""
        self._lead = ""  # whitespace before the present call
        self._muted = False
        self._any = False

    def content(self, text: str) -> None:
        """Text for the reader."""
        text = self._blank + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        if shown:
            self._parts.append(Content(shown))

    def began(self, name: str, call_id: str = "") -> None:
        """A call has a name and the beginning of its arguments."""
        self._muted = self._left == 0
        if self._muted:
            return
        self._lead, self._blank = self._blank, ""
        self._parts.append(CallBegan(call_id or self._new_id(), name))

    def arguments(self, text: str) -> None:
        """A piece of the arguments of the call that began."""
        if text and not self._muted:
            self._parts.append(ArgumentsMade(text))

    def ended(self) -> None:
        """The call is whole."""
        if not self._muted:
            self._any = True
            self._blank = ""
            self._left = None if self._left is None else self._left - 1
            self._parts.append(CallEnded())
        self._muted = False

    def broken(self, text: str, *, began: bool) -> None:
        """What looked like a call is none. ``text``: all of it. ``began``: as a call it has begun."""
        if not began or self._muted:
            self._muted = False
            self.content(text)
            return
        text = self._lead + text
        shown = text.rstrip()
        self._blank = text[len(shown) :]
        self._parts.append(CallBroken(shown))

    def finished(self) -> None:
        """There is no more text."""
        if self._blank and not self._any:
            self._parts.append(Content(self._blank))
        self._blank = ""

    def take(self) -> list[Part]:
        """Return the parts since the last time."""
        parts, self._parts = self._parts, []
        return parts


def held_back(text: str, mark: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``mark``."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
