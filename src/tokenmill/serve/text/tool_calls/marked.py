"""What readers of calls behind a mark have in common: one state reads after the other, and content goes up to
the mark.

Must not know any one format.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from tokenmill.serve.text.tool_calls.parts import Part, PartsOut, held_back


class MarkedParser(ABC):
    """A ``ToolCallParser`` but for its ``finish``. ``mark``: what content ends at; ``closing``: what may
    stand behind a call.

    States are methods in ``_read``: each takes a text and returns what of it another one is to read. What one
    of them cannot decide yet is kept in ``_held``.
    """

    def __init__(self, out: PartsOut, mark: str, closing: str = "") -> None:
        self._out = out
        self._mark = mark
        self._closing = closing
        self._read: Callable[[str], str] = self._content
        self._held = ""

    def push(self, text: str) -> list[Part]:
        """See ``ToolCallParser``."""
        while text:
            text = self._read(text)
        return self._out.take()

    @abstractmethod
    def _marked(self, text: str) -> str:
        """Go on behind the mark, with ``text``."""

    def _content(self, text: str) -> str:
        text, self._held = self._held + text, ""
        before, mark, behind = text.partition(self._mark)
        if mark:
            self._out.content(before)
            return self._marked(behind)
        safe = len(text) - held_back(text, self._mark)
        self._out.content(text[:safe])
        self._held = text[safe:]
        return ""

    def _behind(self, text: str) -> str:
        """Leave the closing tag out."""
        text, self._held = self._held + text, ""
        rest = text.lstrip()
        if self._closing.startswith(rest) and rest != self._closing:
            self._held = text
            return ""
        self._read = self._content
        return rest[len(self._closing) :] if rest.startswith(self._closing) else text
