"""What is wrong with a file a person wrote: where, which field, what, and the fix.

Knows nothing of any particular file's fields.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tokenmill.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """A position in a text; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Problem:
    """One thing to mend. ``path`` names the field (``stages[1].role``), empty for the whole file."""

    source: str
    place: Place
    path: str
    message: str

    def __str__(self) -> str:
        """One line: ``file:line:column: field: what is wrong and the fix``."""
        where = f"{self.source}:{self.place.line}:{self.place.column}"
        return f"{where}: {self.path}: {self.message}" if self.path else f"{where}: {self.message}"


class FactoryError(ConfigError):
    """A factory file cannot be used. ``problems`` has all that is wrong with it, in the file's order."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Return problems in the file's order."""
    return sorted(problems, key=lambda each: (each.place.line, each.place.column))


def repeated(names: Iterable[str]) -> Iterator[tuple[int, str, int]]:
    """Yield each name that was there before: its place, the name, and the first one's place."""
    seen: dict[str, int] = {}
    for index, name in enumerate(names):
        if seen.setdefault(name, index) != index:
            yield index, name, seen[name]


def one_of(choices: Iterable[str]) -> str:
    """Write choices for a sentence: ``a, b or c``."""
    names = list(choices)
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean "x"?`` with its leading space, or nothing where no choice is close."""
    close = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.6)
    return f' Did you mean "{close[0]}"?' if close else ""
