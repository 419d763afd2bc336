"""Calls as Hermes and Qwen models write them: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``,
one behind the other, with text before them.

Must not know how the tags became text: tokens that are usually hidden must be shown.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.serve.text.tool_calls.call_object import CallObject
from tokenmill.serve.text.tool_calls.json_value import State
from tokenmill.serve.text.tool_calls.parts import Part, PartsOut, held_back

OPENING = "<tool_call>"
CLOSING = "</tool_call>"


class HermesParser:
    """A missing ``</tool_call>`` is forgiven; what stands in its place is content."""

    def __init__(self, out: PartsOut) -> None:
        self._out = out
        self._read: Callable[[str], str] = self._content
        self._held = ""  # at most a tag, and blanks before a closing one
        self._call = CallObject(out)
        self._raw: list[str] = []  # of the present call, bounded by the request's max_tokens

    def push(self, text: str) -> list[Part]:
        """See ``ToolCallParser``."""
        while text:
            text = self._read(text)
        return self._out.take()

    def finish(self, *, cut: bool) -> list[Part]:
        """See ``ToolCallParser``."""
        if self._read == self._content:
            self._out.content(self._held)
        elif self._read == self._inside and not (cut and self._call.began):
            self._out.broken("".join(self._raw), began=self._call.began)
        self._out.finished()
        return self._out.take()

    # Each takes a text and returns what of it another one is to read.

    def _content(self, text: str) -> str:
        text, self._held = self._held + text, ""
        before, tag, behind = text.partition(OPENING)
        if tag:
            self._out.content(before)
            self._call, self._raw, self._read = CallObject(self._out), [OPENING], self._inside
            return behind
        safe = len(text) - held_back(text, OPENING)
        self._out.content(text[:safe])
        self._held = text[safe:]
        return ""

    def _inside(self, text: str) -> str:
        end = self._call.push(text)
        self._raw.append(text[:end])
        if self._call.state is State.DONE:
            self._out.ended()
            self._read = self._behind
        elif self._call.state is State.BROKEN:
            self._out.broken("".join(self._raw), began=self._call.began)
            self._read = self._content
        return text[end:]

    def _behind(self, text: str) -> str:
        """Leave the closing tag out."""
        text, self._held = self._held + text, ""
        rest = text.lstrip()
        if CLOSING.startswith(rest):
            if rest == CLOSING:
                self._read = self._content
            else:
                self._held = text
            return ""
        self._read = self._content
        return rest[len(CLOSING) :] if rest.startswith(CLOSING) else text
