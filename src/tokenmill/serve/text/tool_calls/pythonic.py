"""Calls as Llama 3.2, Llama 4 and some others write them: the answer is a Python list of calls,
``[weather(city="Rome", days=3), time()]``, perhaps between ``<|python_start|>`` and ``<|python_end|>``.

A list may as well be an answer, so that it counts only where its first name is that of a function that was
offered. Nothing is run: the list is parsed, and its arguments must be literals. They are given when the list
is whole, since they must be written anew as JSON. Must not know how the tags became text.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Container

from tokenmill.serve.text.tool_calls.marked import MarkedParser
from tokenmill.serve.text.tool_calls.parts import Part, PartsOut

OPENING = "<|python_start|>"
CLOSING = "<|python_end|>"
LONGEST_NAME = 256
LONGEST_LIST = 64 * 1024
"""Characters of a list that is held until it is whole; a longer one is content."""

_HEAD = re.compile(r"\[\s*[A-Za-z_][\w.]*\s*", re.ASCII)
_PARTIAL = re.compile(r"\[\s*(?:[A-Za-z_][\w.]*\s*)?", re.ASCII)
_OPENERS = {")": "(", "]": "[", "}": "{"}
_NAME = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)


class PythonicParser(MarkedParser):
    """Lists stand at the beginning, or anywhere behind ``<|python_start|>``."""

    def __init__(self, out: PartsOut, known: Container[str]) -> None:
        super().__init__(out, OPENING, CLOSING)
        self._known = known
        self._read = self._start
        self._list = _Brackets()
        self._tag = ""

    def finish(self, *, cut: bool) -> list[Part]:  # noqa: ARG002
        """See ``ToolCallParser``; a call is given whole or not at all."""
        if self._read != self._behind:
            self._out.content(self._tag + self._held)
        self._out.finished()
        return self._out.take()

    def _marked(self, text: str) -> str:
        self._tag, self._read = OPENING, self._head
        return text

    def _start(self, text: str) -> str:
        text, self._held = self._held + text, ""
        rest = text.lstrip()
        if rest.startswith("["):
            self._out.content(text[: len(text) - len(rest)])
            self._read = self._head
            return rest
        if OPENING.startswith(rest) and rest != OPENING:
            self._held = text
            return ""
        self._read = self._content
        return text

    def _head(self, text: str) -> str:
        """To the brace behind the first name."""
        text, self._held = self._held + text, ""
        at = text.find("(", 0, LONGEST_NAME)
        head = text[: at if at >= 0 else LONGEST_NAME].lstrip()
        if at >= 0 and _HEAD.fullmatch(head) and head[1:].strip() in self._known:
            self._list, self._read = _Brackets(), self._inside
            return text
        if at < 0 and len(text) < LONGEST_NAME and (not head or _PARTIAL.fullmatch(head)):
            self._held = text
            return ""
        return self._no_call(text)

    def _inside(self, text: str) -> str:
        end = self._list.push(text, LONGEST_LIST - len(self._held))
        self._held, text = self._held + text[:end], text[end:]
        if self._list.whole:
            calls = _calls(self._held.strip())
            if calls is None:
                return self._no_call(self._held) + text
            for name, arguments in calls:
                self._out.began(name)
                self._out.arguments(arguments)
                self._out.ended()
            self._held, self._tag, self._read = "", "", self._behind
        elif self._list.wrong or len(self._held) >= LONGEST_LIST:
            return self._no_call(self._held) + text
        return text

    def _no_call(self, text: str) -> str:
        """What was held is content, up to where the next tag may begin."""
        self._out.content(self._tag)
        self._held, self._tag, self._read = "", "", self._content
        return text


class _Brackets:
    """Finds the end of a Python list by its brackets and strings."""

    def __init__(self) -> None:
        self.whole = False
        self.wrong = False
        self._open: list[str] = []
        self._quote = ""
        self._escaped = False

    def push(self, text: str, most: int) -> int:
        """Return the place behind the list's end, or behind what was read, at most ``most`` characters."""
        for at, char in enumerate(text[:most]):
            if self._quote:
                self._in_string(char)
            elif char in "'\"":
                self._quote = char
            elif char in "([{":
                self._open.append(char)
            elif char in ")]}":
                if not self._open or self._open.pop() != _OPENERS[char]:
                    self.wrong = True
                    return at
                self.whole = not self._open
            if self.whole:
                return at + 1
        return min(len(text), most)

    def _in_string(self, char: str) -> None:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == self._quote:
            self._quote = ""


def _calls(text: str) -> list[tuple[str, str]] | None:
    """Return the names and JSON arguments of a list of calls; None where it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # for odd escapes in strings, which are the model's affair
            tree = ast.parse(text, mode="eval").body
        return [_call(item) for item in tree.elts] if isinstance(tree, ast.List) else None
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> tuple[str, str]:
    """Return a call's name and arguments. Raises ValueError or TypeError for what is none, and for what JSON
    cannot say."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call with named arguments")
    name = ast.unparse(node.func)
    arguments = {each.arg: ast.literal_eval(each.value) for each in node.keywords}
    if None in arguments or not _NAME.fullmatch(name):
        raise ValueError("not a plain call")
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    text.encode()  # half a surrogate pair is no text
    return name, text
