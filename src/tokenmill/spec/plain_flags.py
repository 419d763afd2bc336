"""Flags in the one form in which a supervisor writes them, read without a command line's library.

Exists because that library and what it imports would stay in every process of a factory: some 7 MB, and a
tenth of a second at each start. Whatever is not of that form is left to the library, which has the good
complaints. It must not know what the flags are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, ClassVar, Protocol, TypeVar, get_args, get_origin, get_type_hints


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


Config = TypeVar("Config", bound=Dataclass)


class _NotPlain(Exception):
    """Something that only the library reads, or complains of."""


def read_plain(
    kind: type[Config], words: Sequence[str], environment: Mapping[str, str], prefix: str
) -> Config | None:
    """Return the config that ``words`` stand for, or None where they are not all ``--name=value``,
    ``--switch`` or ``--no-switch`` with a good value, or ``environment`` has more for it (variables are
    ``prefix`` and the field's name in capitals) than words."""
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    try:
        for word in words:
            _take(word, hints, values)
        for item in fields(kind):
            said = environment.get(prefix + item.name.upper())
            if said is not None and item.name not in values:
                if hints[item.name] is not str:
                    return None
                values[item.name] = said
            required = item.default is MISSING and item.default_factory is MISSING
            if required and item.name not in values:
                return None
        return kind(**values)
    except (_NotPlain, ValueError):
        return None


def _take(word: str, hints: Mapping[str, Any], values: dict[str, Any]) -> None:
    flag, equals, text = word.partition("=")
    if not flag.startswith("--"):
        raise _NotPlain
    name = flag[2:].replace("-", "_")
    if not equals:
        wanted = not name.startswith("no_")
        name = name if wanted else name.removeprefix("no_")
        if hints.get(name) is not bool:
            raise _NotPlain
        values[name] = wanted
        return
    if get_origin(hints.get(name + "s")) is dict:
        name += "s"
    hint = hints.get(name)
    origin, parts = get_origin(hint), get_args(hint)
    if hint is bool or hint is None:
        raise _NotPlain
    if origin is list:
        values.setdefault(name, []).append(_one(parts[0], text))
    elif origin is dict:
        key, equals, value = text.rpartition("=") if parts[1] is float else text.partition("=")
        if not key or not equals:
            raise _NotPlain
        values.setdefault(name, {})[key] = _one(parts[1], value)
    elif name in values:
        raise _NotPlain
    else:
        values[name] = _one(hint, text)


def _one(hint: Any, text: str) -> Any:
    if hint is str:
        return text
    if hint is int or int in get_args(hint):
        return int(text)
    if hint is float:
        return float(text)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(text)
    raise _NotPlain
