"""Calls as Hermes and Qwen models write them: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``,
one behind the other, with text before them.

Must not know how the tags became text: tokens that are usually hidden must be shown.
"""

from __future__ import annotations

from tokenmill.serve.text.tool_calls.call_object import CallObject
from tokenmill.serve.text.tool_calls.json_value import State
from tokenmill.serve.text.tool_calls.marked import MarkedParser
from tokenmill.serve.text.tool_calls.parts import Part, PartsOut

OPENING = "<tool_call>"
CLOSING = "</tool_call>"


class HermesParser(MarkedParser):
    """A missing ``</tool_call>`` is forgiven; what stands in its place is content."""

    def __init__(self, out: PartsOut) -> None:
        super().__init__(out, OPENING, CLOSING)
        self._call = CallObject(out)
        self._raw: list[str] = []  # of the present call, bounded by the request's max_tokens

    def finish(self, *, cut: bool) -> list[Part]:
        """See ``ToolCallParser``."""
        if self._read == self._content:
            self._out.content(self._held)
        elif self._read == self._inside and not (cut and self._call.began):
            self._out.broken("".join(self._raw), began=self._call.began)
        self._out.finished()
        return self._out.take()

    def _marked(self, text: str) -> str:
        self._call, self._raw, self._read = CallObject(self._out), [OPENING], self._inside
        return text

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
