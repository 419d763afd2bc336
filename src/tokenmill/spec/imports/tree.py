"""A file's values with their places, and the book of what was read of them.

Whoever reads a value marks it. ``Item.leftovers`` are the values that nobody has read. Knows no kind of file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import yaml

from tokenmill.spec.nodes import place_of
from tokenmill.spec.problems import FactoryError, Place, Problem

MAX_VALUES = 100_000
"""A file of 1 MiB can hold as many; one that repeats itself by references could unfold to any number."""

_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class Loss:
    """Something that was not carried over, or was carried over as a guess. ``path``: where it stood."""

    path: str
    place: Place
    why: str


@dataclass
class Report:
    """What is found while a file is read."""

    source: str
    problems: list[Problem] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


class Item:
    """One value: a text (None for null), a mapping, or a list. Asking for a wrong kind notes a problem."""

    def __init__(self, report: Report, path: str, place: Place) -> None:
        self.report = report
        self.path = path
        self.place = place
        self.value: str | dict[str, Item] | list[Item] | None = None
        self._read = False

    def blame(self, message: str) -> None:
        """Note a problem with this value."""
        self.report.problems.append(Problem(self.report.source, self.place, self.path, message))

    def lose(self, why: str) -> None:
        """Note that this value is not carried over."""
        self.take()
        self.note(why)

    def note(self, why: str, *, at: str = "") -> None:
        """Note that something of this value, ``at`` in it, is not carried over, or not for certain."""
        loss = Loss(f"{self.path}{at}", self.place, why)
        if loss not in self.report.losses:  # several parts of a file may share a value
            self.report.losses.append(loss)

    def take(self) -> None:
        """Note that this value and all below it is carried over, or says nothing that would have to be."""
        self._read = True
        for child in self._children():
            child.take()

    def get(self, *names: str) -> Item | None:
        """Return what stands below ``names``; None where there is nothing, or null."""
        found: Item | None = self
        for name in names:
            if found is None:
                return None
            found = found.entries().get(name)
        return found

    def entries(self) -> dict[str, Item]:
        """Return a mapping's values that are not null."""
        if isinstance(self.value, dict):
            return {name: item for name, item in self.value.items() if item.value is not None}
        if self.value is not None:
            self.blame("must be a mapping (key: value)")
        return {}

    def items(self) -> list[Item]:
        """Return a list's values."""
        if isinstance(self.value, list):
            return self.value
        if self.value is not None:
            self.blame("must be a list")
        return []

    def text(self) -> str:
        """Return a text or number as it is written; "" for null."""
        self._read = True
        if isinstance(self.value, str):
            return self.value
        if self.value is not None:
            self.blame("must be a text")
        return ""

    def number(self) -> int:
        """Return a whole number, 0 or more."""
        text = self.text()
        if text.isdecimal():
            return int(text)
        if isinstance(self.value, str):
            self.blame(f'must be a whole number, 0 or more, not "{text}"')
        return 0

    def texts(self) -> list[str]:
        """Return a list of texts."""
        return [item.text() for item in self.items()]

    def leftovers(self) -> Iterator[Item]:
        """Yield what nobody has read, each whole part once."""
        if self._read or self.value is None:
            return
        children = self._children()
        if not any(child.touched() for child in children):
            yield self
            return
        for child in children:
            yield from child.leftovers()

    def touched(self) -> bool:
        """Whether this value or one below it was read."""
        return self._read or any(child.touched() for child in self._children())

    def _children(self) -> list[Item]:
        if isinstance(self.value, dict):
            return list(self.value.values())
        return self.value if isinstance(self.value, list) else []


def read_tree(node: yaml.Node, report: Report) -> Item:
    """Return a document's values. Raises FactoryError for one that unfolds to too many."""
    return _Unfolding(report).item(node, "")


def lose_the_rest(item: Item, why: Callable[[Item], str]) -> None:
    """Note what nobody has read. ``why``: says the reason."""
    for rest in list(item.leftovers()):
        rest.lose(why(rest))


class _Unfolding:
    def __init__(self, report: Report) -> None:
        self._report = report
        self._left = MAX_VALUES

    def item(self, node: yaml.Node, path: str) -> Item:
        item = Item(self._report, path, place_of(node))
        self._left -= 1
        if self._left < 0:
            what = f"unfolds to more than {MAX_VALUES} values; is it what you mean to import?"
            raise FactoryError([Problem(self._report.source, item.place, "", what)])
        if isinstance(node, yaml.MappingNode):
            item.value = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            item.value = [self.item(child, f"{path}[{index}]") for index, child in enumerate(node.value)]
        else:
            item.value = None if node.tag == _NULL else str(node.value)
        return item

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Item]:
        values: dict[str, Item] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif isinstance(key, yaml.ScalarNode):
                values[key.value] = self.item(value, _below(path, key.value))
        for other in merged:
            if isinstance(other, yaml.MappingNode):
                values = {**self._mapping(other, path), **values}
        return values


def _below(path: str, name: str) -> str:
    shown = name if "." not in name and "/" not in name else f'"{name}"'
    return f"{path}.{shown}" if path else shown
