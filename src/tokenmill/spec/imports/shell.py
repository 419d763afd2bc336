"""What a container's command starts, as far as it can be told without a shell.

Scripts in containers mostly set variables, make folders, and start one program. This reads them token by
token: quotes, variables, arrays, comments and here-documents as a shell does; it runs nothing, and takes
conditions for true. It must not know which programs matter.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_SHELLS = re.compile(r"(?:.*/)?(?:ba|z|da)?sh")
_SCRIPT_FLAG = re.compile(r"-[a-z]*c")
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?:\[[@*]\])?(?::?([-+=?])([^}]*))?\})")
_KUBERNETES_VARIABLE = re.compile(r"\$\((\w+)\)")
_OPERATORS = ("&&", "||", ";;", ">>", "<<", ">", "<", ";", "|", "&", "\n", "(", ")")

UNKNOWN = "\0"
"""Stands in a word for what is known only when the script runs."""


class Unreadable(Exception):
    """The script is not one that a shell would take, or is too clever."""


@dataclass
class Command:
    """One command of a script. ``environment``: set in front of it."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


@dataclass
class Script:
    """All commands in order. ``used``: variables that were looked up; ``variables``: all at the end."""

    commands: list[Command]
    used: set[str]
    variables: dict[str, str]


def read_command(command: list[str], arguments: list[str], environment: Mapping[str, str]) -> Script:
    """Read a container's ``command`` and ``args``. Raises Unreadable."""
    words = [*command, *arguments]
    if len(words) > 1 and _SHELLS.fullmatch(words[0]):
        for index, word in enumerate(words[1:-1], start=1):
            if _SCRIPT_FLAG.fullmatch(word):
                return _Reader(words[index + 1], environment).script()
    used: set[str] = set()

    def known(found: re.Match[str]) -> str:
        used.add(found[1])
        return environment.get(found[1], UNKNOWN)

    expanded = [_KUBERNETES_VARIABLE.sub(known, word) for word in words]
    return Script([Command(expanded)] if expanded else [], used, dict(environment))


@dataclass
class _Word:
    """``parts``: more than one where an array stood there."""

    parts: list[str]


class _Reader:
    """Reads one script from its beginning to its end."""

    def __init__(self, text: str, environment: Mapping[str, str]) -> None:
        self._text = text.replace("\\\n", " ")
        self._at = 0
        self._variables: dict[str, str] = dict(environment)
        self._arrays: dict[str, list[str]] = {}
        self._used: set[str] = set()

    def script(self) -> Script:
        commands: list[Command] = []
        while self._at < len(self._text):
            command = self._command()
            if command.words:
                commands.append(command)
        return Script(commands, self._used, self._variables)

    def _command(self) -> Command:
        """Read up to the next operator that ends a command."""
        words: list[str] = []
        own: dict[str, str] = {}
        while (piece := self._next()) is not None:
            if isinstance(piece, str):
                if piece == "<<":
                    self._here_document()
                elif piece in (">", ">>", "<"):
                    self._next()
                elif piece not in "()" or words:
                    break
                continue
            assignment = _ASSIGNMENT.fullmatch(piece.parts[0]) if len(piece.parts) == 1 else None
            if assignment and not words:
                own[assignment[1]] = assignment[3]
            elif words or piece.parts != [""]:
                words += piece.parts
        if words[:1] in (["export"], ["local"], ["declare"], ["readonly"]):
            pairs = [_ASSIGNMENT.fullmatch(word) for word in words[1:]]
            own |= {pair[1]: pair[3] for pair in pairs if pair}
            words = []
        if words:
            return Command(words, own)
        self._variables |= own
        return Command([])

    def _next(self) -> _Word | str | None:
        """Return the next word or operator, None at the end."""
        text = self._text
        while self._at < len(text) and text[self._at] in " \t":
            self._at += 1
        if self._at >= len(text):
            return None
        if text[self._at] == "#":
            end = text.find("\n", self._at)
            self._at = len(text) if end < 0 else end
            return self._next()
        if text.startswith("2>&1", self._at):
            self._at += 4
            return self._next()
        for operator in _OPERATORS:
            if text.startswith(operator, self._at):
                self._at += len(operator)
                return operator
        return self._word()

    def _word(self) -> _Word:
        parts = [""]
        text = self._text
        while self._at < len(text):
            char = text[self._at]
            if char == "(" and (array := _ASSIGNMENT.fullmatch(parts[-1])) and not array[3]:
                self._array(array[1], more=bool(array[2]))
                return _Word([""])
            if char in " \t" or any(text.startswith(each, self._at) for each in _OPERATORS):
                break
            if char == "'":
                parts[-1] += self._until("'")
            elif char == '"':
                self._double_quoted(parts)
            elif char == "\\":
                parts[-1] += text[self._at + 1 : self._at + 2]
                self._at += 2
            elif char in "$`":
                self._expand(parts)
            else:
                parts[-1] += char
                self._at += 1
        return _Word(parts)

    def _until(self, quote: str) -> str:
        end = self._text.find(quote, self._at + 1)
        if end < 0:
            raise Unreadable(f"a {quote} is not closed")
        found = self._text[self._at + 1 : end]
        self._at = end + 1
        return found

    def _double_quoted(self, parts: list[str]) -> None:
        self._at += 1
        text = self._text
        while self._at < len(text) and text[self._at] != '"':
            if text[self._at] == "\\" and text[self._at + 1 : self._at + 2] in ('"', "\\", "$", "`"):
                parts[-1] += text[self._at + 1]
                self._at += 2
            elif text[self._at] in "$`":
                self._expand(parts)
            else:
                parts[-1] += text[self._at]
                self._at += 1
        if self._at >= len(text):
            raise Unreadable('a " is not closed')
        self._at += 1

    def _expand(self, parts: list[str]) -> None:
        """Read what begins with a dollar sign or a backtick."""
        text = self._text
        if text[self._at] == "`":
            self._until("`")
            parts[-1] += UNKNOWN
            return
        if text.startswith("$(", self._at):
            self._skip_substitution()
            parts[-1] += UNKNOWN
            return
        found = _VARIABLE.match(text, self._at)
        if found is None:
            parts[-1] += UNKNOWN if text.startswith("${", self._at) else "$"
            self._at = text.find("}", self._at) + 1 if text.startswith("${", self._at) else self._at + 1
            return
        self._at = found.end()
        name = found[1] or found[2]
        if name in self._arrays and "[" in found[0]:
            first, *rest = self._arrays[name] or [""]
            parts[-1] += first
            parts += rest
            return
        parts[-1] += self._value(name, found[3], found[4] or "")

    def _value(self, name: str, operator: str | None, other: str) -> str:
        self._used.add(name)
        value = self._variables.get(name, "")
        if operator == "+":
            return other if value else ""
        if operator in ("-", "="):
            return value or self._plain(other)
        return value if name in self._variables else UNKNOWN

    def _plain(self, text: str) -> str:
        """Expand the variables of a default value."""
        return _VARIABLE.sub(lambda found: self._value(found[1] or found[2], None, ""), text).strip("\"'")

    def _skip_substitution(self) -> None:
        depth = 0
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in "'\"" and depth:
                self._until(char)
                continue
            depth += (char == "(") - (char == ")")
            self._at += 1
            if char == ")" and not depth:
                return
        raise Unreadable("a $( is not closed")

    def _array(self, name: str, *, more: bool) -> None:
        self._at += 1
        values: list[str] = []
        while (piece := self._next()) != ")":
            if piece is None:
                raise Unreadable(f"the list {name} is not closed")
            if isinstance(piece, _Word):
                values += piece.parts
        self._arrays[name] = [*self._arrays.get(name, []), *values] if more else values

    def _here_document(self) -> None:
        """Skip to the line that ends it."""
        if self._text.startswith("-", self._at):
            self._at += 1
        delimiter = self._next()
        if not isinstance(delimiter, _Word):
            raise Unreadable("a here-document has no end")
        end = re.compile(rf"^\s*{re.escape(delimiter.parts[0])}\s*$", re.MULTILINE).search(
            self._text, self._at
        )
        if end is None:
            raise Unreadable(f"a here-document is not closed by {delimiter.parts[0]}")
        self._at = end.end()
