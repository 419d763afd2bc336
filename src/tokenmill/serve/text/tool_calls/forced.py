"""Calls that an engine was made to write by a JSON schema: ``tool_choice`` "required" or a function's name.

Exists because the schema, and not the model, says how they are written. Must not know engines.
"""

from __future__ import annotations

from tokenmill.serve.text.tool_calls.call_object import CallList
from tokenmill.serve.text.tool_calls.json_value import JsonValue, State
from tokenmill.serve.text.tool_calls.parts import Part, PartsOut

_BLANK = " \t\n\r"


class RequiredCalls:
    """Reads ``[{"name": ..., "arguments": {...}}, ...]``; what is no such list, or comes behind it, is
    content."""

    def __init__(self, out: PartsOut) -> None:
        self._out = out
        self._list = CallList(out)

    def push(self, text: str) -> list[Part]:
        """See ``ToolCallParser``."""
        end = self._list.push(text)
        self._out.content(text[end:])
        return self._out.take()

    def finish(self, *, cut: bool) -> list[Part]:
        """See ``ToolCallParser``."""
        self._list.finish(cut=cut)
        self._out.finished()
        return self._out.take()


class NamedCall:
    """Reads the arguments of the function ``name``; what is no object, or comes behind it, is content."""

    def __init__(self, out: PartsOut, name: str) -> None:
        self._out = out
        self._name = name
        self._began = False
        self._over = False
        self._arguments = JsonValue()
        self._raw: list[str] = []  # bounded by the request's max_tokens

    def push(self, text: str) -> list[Part]:
        """See ``ToolCallParser``."""
        if not self._began and not self._over:
            text = self._begin(text)
        if self._began and not self._over:
            text = self._inside(text)
        if self._over:
            self._out.content(text)
        return self._out.take()

    def finish(self, *, cut: bool) -> list[Part]:
        """See ``ToolCallParser``."""
        if not self._over and not (cut and self._began):
            self._out.broken("".join(self._raw), began=self._began)
        self._out.finished()
        return self._out.take()

    def _begin(self, text: str) -> str:
        rest = text.lstrip(_BLANK)
        self._raw.append(text[: len(text) - len(rest)])
        if rest.startswith("{"):
            self._began = True
            self._out.began(self._name)
        elif rest:
            self._over = True
            self._out.broken("".join(self._raw), began=False)
        return rest

    def _inside(self, text: str) -> str:
        end = self._arguments.push(text)
        self._out.arguments(text[:end])
        self._raw.append(text[:end])
        if self._arguments.state is State.DONE:
            self._over = True
            self._out.ended()
        elif self._arguments.state is State.BROKEN:
            self._over = True
            self._out.broken("".join(self._raw), began=True)
        return text[end:]
