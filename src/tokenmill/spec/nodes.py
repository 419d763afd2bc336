"""From YAML's node graph to a struct, keeping the place of every value for the messages.

Driven by the types of ``msgspec`` structs; knows nothing of any particular file. A value that is wrong adds a
``Problem`` and is left out, so that one reading finds all that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import yaml
from msgspec import inspect

from tokenmill.spec.problems import Place, Problem, did_you_mean, one_of

_MERGE: Final = "tag:yaml.org,2002:merge"
_NULL: Final = "tag:yaml.org,2002:null"
_INT: Final = re.compile(r"[-+]?(0|[1-9][0-9_]*)")
_MAX_MERGE_DEPTH: Final = 16
_BAD: Final = object()
"""Stands for a value whose problem is already noted."""


class Reader:
    """Reads one document. ``places`` maps field paths to where their values stand."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.problems: list[Problem] = []
        self.places: dict[str, Place] = {}

    def struct(self, node: yaml.Node, kind: type[msgspec.Struct]) -> Any:
        """Read ``node`` as ``kind``; returns None where something it needs is wrong."""
        info = inspect.type_info(kind)
        assert isinstance(info, inspect.StructType)
        value = self._struct(node, info, "")
        return None if value is _BAD else value

    def blame(self, place: Place, path: str, message: str) -> object:
        """Note a problem."""
        self.problems.append(Problem(self.source, place, path, message))
        return _BAD

    def blame_field(self, path: str, message: str) -> None:
        """Point at the field, or where it is not written, at what it belongs to."""
        spot = path
        while spot and spot not in self.places:
            spot = spot.rpartition(".")[0]
        self.blame(self.places.get(spot, Place(1, 1)), path, message)

    def _value(self, node: yaml.Node, kind: inspect.Type, path: str) -> object:
        self.places[path] = place_of(node)
        match kind:
            case inspect.StructType():
                return self._struct(node, kind, path)
            case inspect.ListType(item_type=item):
                return self._list(node, item, path)
            case inspect.DictType(value_type=item):
                return self._dict(node, item, path)
            case inspect.UnionType(types=(first, inspect.NoneType())):
                return self._value(node, first, path)  # a field that is null was left out before
            case inspect.BoolType():
                return self._bool(node, path)
            case inspect.IntType() | inspect.FloatType():
                return self._number(node, kind, path)
            case inspect.StrType():
                return self._str(node, kind, path)
            case inspect.LiteralType(values=choices):
                return self._choice(node, [str(choice) for choice in choices], path)
            case inspect.EnumType(cls=enum):
                text = self._choice(node, [str(member.value) for member in enum], path)
                return text if text is _BAD else enum(text)
        raise TypeError(f"{path}: a factory file has no values of type {kind}")

    def _struct(self, node: yaml.Node, kind: inspect.StructType, path: str) -> object:
        if not isinstance(node, yaml.MappingNode):
            return self._wrong(node, path, "a mapping (key: value)")
        fields = {item.encode_name: item for item in kind.fields}
        values: dict[str, object] = {}
        good = True
        for key, value in self._pairs(node, path):
            name = str(key.value)
            spot = f"{path}.{name}" if path else name
            if name not in fields:
                if path or not name.startswith("x-"):
                    self._unknown(key, spot, list(fields))
                continue
            if value.tag == _NULL:
                continue
            decoded = self._value(value, fields[name].type, spot)
            if decoded is not _BAD:
                values[fields[name].name] = decoded
            elif fields[name].required:
                good = False
        seen = {str(key.value) for key, value in self._pairs(node, path, quiet=True) if value.tag != _NULL}
        for item in kind.fields:
            if item.required and item.encode_name not in seen:
                spot = f"{path}.{item.encode_name}" if path else item.encode_name
                self.blame(place_of(node), spot, f'is missing; add "{item.encode_name}:"')
                good = False
        return kind.cls(**values) if good else _BAD

    def _unknown(self, key: yaml.Node, path: str, known: list[str]) -> None:
        hint = did_you_mean(str(key.value), known) or f" Known here: {', '.join(known)}."
        self.blame(place_of(key), path, f"unknown field.{hint}")

    def _pairs(
        self, node: yaml.MappingNode, path: str, *, quiet: bool = False, depth: int = 0
    ) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """The mapping's pairs, ``<<`` merged in below its own keys. Notes repeated keys unless quiet."""
        first: dict[str, yaml.Node] = {}
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merged.extend(value.value if isinstance(value, yaml.SequenceNode) else [value])
            elif not isinstance(key, yaml.ScalarNode):
                if not quiet:
                    self.blame(place_of(key), path, "a key must be a plain word")
            elif key.value in first:
                if not quiet:
                    line = place_of(first[key.value]).line
                    spot = f"{path}.{key.value}" if path else key.value
                    self.blame(place_of(key), spot, f"is here twice (first on line {line}); remove one")
            else:
                first[key.value] = key
                yield key, value
        for other in merged:
            if not isinstance(other, yaml.MappingNode) or depth >= _MAX_MERGE_DEPTH:
                if not quiet:
                    self.blame(place_of(other), path, '"<<" merges mappings only')
                continue
            for key, value in self._pairs(other, path, quiet=True, depth=depth + 1):
                if key.value not in first:
                    first[key.value] = key
                    yield key, value

    def _list(self, node: yaml.Node, item: inspect.Type, path: str) -> object:
        if not isinstance(node, yaml.SequenceNode):
            return self._wrong(node, path, "a list")
        values = [self._value(child, item, f"{path}[{i}]") for i, child in enumerate(node.value)]
        return [value for value in values if value is not _BAD]

    def _dict(self, node: yaml.Node, item: inspect.Type, path: str) -> object:
        if not isinstance(node, yaml.MappingNode):
            return self._wrong(node, path, "a mapping (key: value)")
        pairs = self._pairs(node, path)
        values = {key.value: self._value(value, item, f"{path}.{key.value}") for key, value in pairs}
        return {key: value for key, value in values.items() if value is not _BAD}

    def _bool(self, node: yaml.Node, path: str) -> object:
        if _plain(node) and node.value.lower() in {"true", "yes", "on"}:
            return True
        if _plain(node) and node.value.lower() in {"false", "no", "off"}:
            return False
        return self._wrong(node, path, "true or false")

    def _number(self, node: yaml.Node, kind: inspect.IntType | inspect.FloatType, path: str) -> object:
        whole = isinstance(kind, inspect.IntType)
        wanted = "a whole number" if whole else "a number"
        number: float | None = None
        if _plain(node):
            number = int(node.value) if _INT.fullmatch(node.value) else None
            if number is None and not whole:
                number = _finite(node.value)
        if number is None:
            return self._wrong(node, path, wanted)
        if kind.ge is not None and number < kind.ge:
            return self.blame(place_of(node), path, f"must be {kind.ge} or more, not {node.value}")
        if kind.gt is not None and number <= kind.gt:
            return self.blame(place_of(node), path, f"must be more than {kind.gt}, not {node.value}")
        if kind.le is not None and number > kind.le:
            return self.blame(place_of(node), path, f"must be {kind.le} or less, not {node.value}")
        return number if whole else float(number)

    def _str(self, node: yaml.Node, kind: inspect.StrType, path: str) -> object:
        # A bare number or "off" is what the person typed, so its text is taken: no quotes needed for 3.10.
        if not isinstance(node, yaml.ScalarNode) or node.tag == _NULL:
            return self._wrong(node, path, "a text")
        text: str = node.value
        if kind.pattern is None or re.search(kind.pattern, text):
            return text
        mended = re.sub(r"[^a-z0-9]+", "-", text.lower())[:63].strip("-")
        hint = f', for example "{mended}"' if mended else ""
        rule = "must be 1 to 63 lower-case letters, digits and '-', with '-' neither first nor last"
        return self.blame(place_of(node), path, f'"{text}" {rule}{hint}')

    def _choice(self, node: yaml.Node, choices: list[str], path: str) -> object:
        if not isinstance(node, yaml.ScalarNode):
            return self._wrong(node, path, one_of(choices))
        if node.value in choices:
            return node.value
        hint = did_you_mean(node.value, choices)
        return self.blame(place_of(node), path, f'"{node.value}" is not {one_of(choices)}.{hint}')

    def _wrong(self, node: yaml.Node, path: str, wanted: str) -> object:
        hint = ""
        if isinstance(node, yaml.ScalarNode):
            got = "nothing" if node.tag == _NULL else f'"{node.value}"'
            if not _plain(node) and "number" in wanted and _finite(node.value) is not None:
                hint = "; remove the quotes"
        else:
            got = "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
        return self.blame(place_of(node), path, f"must be {wanted}, not {got}{hint}")


def place_of(node: yaml.Node) -> Place:
    """Where a node begins."""
    return Place(node.start_mark.line + 1, node.start_mark.column + 1)


def _plain(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.style is None


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None
