"""Calls as Llama 3.1 and its like write them: the answer is ``{"name": ..., "parameters": {...}}``, perhaps
behind ``<|python_tag|>``; several are separated by semicolons or line breaks.

Bare JSON may as well be an answer, so that it counts as a call only with the name of a function that was
offered. Must not know how the tag became text: a token that is usually hidden must be shown.
"""

from __future__ import annotations

from collections.abc import Container

from tokenmill.serve.text.tool_calls.call_object import CallObject
from tokenmill.serve.text.tool_calls.json_value import State
from tokenmill.serve.text.tool_calls.marked import MarkedParser
from tokenmill.serve.text.tool_calls.parts import Part, PartsOut

TAG = "<|python_tag|>"
_BETWEEN = " \t\r\n;"


class Llama3JsonParser(MarkedParser):
    """Bare calls stand at the beginning or behind another call; behind the tag they stand anywhere."""

    def __init__(self, out: PartsOut, known: Container[str]) -> None:
        super().__init__(out, TAG)
        self._known = known
        self._read = self._between
        self._call = CallObject(out, known=known)
        self._called = False
        self._raw: list[str] = []  # of the present call, bounded by the request's max_tokens

    def finish(self, *, cut: bool) -> list[Part]:
        """See ``ToolCallParser``."""
        if self._read != self._inside:
            if not self._called or self._held.strip(_BETWEEN):
                self._out.content(self._held)
        elif not (cut and self._call.began):
            self._out.broken("".join(self._raw), began=self._call.began)
        self._out.finished()
        return self._out.take()

    def _marked(self, text: str) -> str:
        return self._begin(TAG, text)

    def _between(self, text: str) -> str:
        """Where a call may begin without a tag."""
        text, self._held = self._held + text, ""
        rest = text.lstrip(_BETWEEN if self._called else None)
        before = text[: len(text) - len(rest)]
        if rest.startswith("{"):
            return self._begin(before, rest)
        if rest.startswith(TAG):
            return self._begin(before + TAG, rest[len(TAG) :])
        if TAG.startswith(rest):
            self._held = text
            return ""
        self._read = self._content
        return text

    def _begin(self, before: str, text: str) -> str:
        self._call = CallObject(self._out, known=self._known)
        self._raw, self._read = [before], self._inside
        return text

    def _inside(self, text: str) -> str:
        end = self._call.push(text)
        self._raw.append(text[:end])
        if self._call.state is State.DONE:
            self._out.ended()
            self._called = True
            self._read = self._between
        elif self._call.state is State.BROKEN:
            self._out.broken("".join(self._raw), began=self._call.began)
            self._read = self._content
        return text[end:]
