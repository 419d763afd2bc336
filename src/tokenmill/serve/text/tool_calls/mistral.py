"""Calls as Mistral's models write them, in each of the two ways that they were taught: ``[TOOL_CALLS]`` and a
list ``[{"name": ..., "arguments": {...}}, ...]``, or for each call ``[TOOL_CALLS]name[ARGS]{...}``, where
``[ARGS]`` may be missing and ``[CALL_ID]id`` may stand before it.

Must not know how the marks became text: tokens that are usually hidden must be shown.
"""

from __future__ import annotations

import re

from tokenmill.serve.text.tool_calls.call_object import CallList
from tokenmill.serve.text.tool_calls.json_value import JsonValue, State
from tokenmill.serve.text.tool_calls.marked import MarkedParser
from tokenmill.serve.text.tool_calls.parts import Part, PartsOut

MARK = "[TOOL_CALLS]"
ARGS = "[ARGS]"
CALL_ID = "[CALL_ID]"
LONGEST_HEAD = 512
"""Characters from the mark to the arguments; what is longer is no call."""

_HEAD_END = re.compile(r"[{\n]")
_HEAD = re.compile(r"([^\[\]]+?)\s*(?:\[CALL_ID\]([A-Za-z0-9_-]+)\s*)?(?:\[ARGS\]\s*)?")


class MistralParser(MarkedParser):
    """Behind the mark stands a list or a name."""

    def __init__(self, out: PartsOut) -> None:
        super().__init__(out, MARK)
        self._list = CallList(out)
        self._arguments = JsonValue()
        self._raw: list[str] = []  # of the present call, bounded by the request's max_tokens

    def finish(self, *, cut: bool) -> list[Part]:
        """See ``ToolCallParser``."""
        if self._read == self._content:
            self._out.content(self._held)
        elif self._read == self._head:
            self._out.broken(MARK + self._held, began=False)
        elif self._read == self._in_list:
            self._list.finish(cut=cut)
        elif not cut:
            self._out.broken("".join(self._raw), began=True)
        self._out.finished()
        return self._out.take()

    def _marked(self, text: str) -> str:
        self._read = self._head
        return text

    def _head(self, text: str) -> str:
        """From the mark to a list, or to the brace of the arguments."""
        text, self._held = self._held + text, ""
        rest = text.lstrip(" \n")
        before = text[: len(text) - len(rest)]
        if len(before) <= LONGEST_HEAD and rest.startswith("["):
            self._list, self._read = CallList(self._out, MARK + before), self._in_list
            return rest
        end = _HEAD_END.search(rest, 0, LONGEST_HEAD)
        if end is None and len(before) <= LONGEST_HEAD and len(rest) < LONGEST_HEAD:
            self._held = text
            return ""
        at = LONGEST_HEAD if end is None else end.start()
        head = _HEAD.fullmatch(rest, 0, at) if end is not None and end[0] == "{" else None
        whole = MARK + before + rest[:at]
        if head is None:
            self._out.broken(whole, began=False)
            self._read = self._content
        else:
            self._out.began(head[1].strip(), head[2] or "")
            self._arguments, self._raw, self._read = JsonValue(), [whole], self._in_arguments
        return rest[at:]

    def _in_list(self, text: str) -> str:
        end = self._list.push(text)
        if self._list.state is not State.OPEN:
            self._read = self._content
        return text[end:]

    def _in_arguments(self, text: str) -> str:
        end = self._arguments.push(text)
        self._out.arguments(text[:end])
        self._raw.append(text[:end])
        if self._arguments.state is State.DONE:
            self._out.ended()
            self._read = self._content
        elif self._arguments.state is State.BROKEN:
            self._out.broken("".join(self._raw), began=True)
            self._read = self._content
        return text[end:]
