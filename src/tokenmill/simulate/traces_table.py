"""Comma-separated traces, row by row, under the several names that their columns go by.

Exists because each publisher names the same three columns otherwise. It must not know what becomes of rows.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from tokenmill.errors import ConfigError

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "at": ("arrived_at", "timestamp", "arrival_time", "arrived_s", "time", "at_s"),
        "prompt": (
            "num_prefill_tokens", "contexttokens", "request tokens", "prompt_tokens", "input_tokens",
            "input_length"),
        "output": (
            "num_decode_tokens", "generatedtokens", "response tokens", "completion_tokens", "output_tokens",
            "output_length"),
        "class": ("class", "klass"),
        "tenant": ("tenant", "user", "user_id"),
        "priority": ("priority",),
    }
)  # fmt: skip
"""What a request says, and the columns that say it; letters' case is no matter."""

_NEEDED: Final = ("at", "prompt", "output")

_FRACTION: Final = re.compile(r"(\.\d{6})\d+")
"""Dates with more digits of a second than Python takes."""


class Row(NamedTuple):
    """One request as written. ``names``: the columns of time, prompt, output and priority."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    klass: str
    tenant: str
    priority: int
    names: tuple[str, str, str, str]


def read_table(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row with its line. Raises ConfigError, naming line and column; OSError as ``open`` does."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        try:
            places = _places(path, next(reader, []))
            for cells in reader:
                if cells:
                    yield reader.line_num, _row(path, reader.line_num, places, cells)
        except (csv.Error, UnicodeDecodeError) as error:
            where = f"trace {path.name}, line {reader.line_num + 1}"
            raise ConfigError(f"{where}: no comma-separated text: {error}", param="trace") from error


def _places(path: Path, header: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Where each column stands, and its name in this file."""
    at = {name.strip().lower(): (index, name.strip()) for index, name in enumerate(header)}
    found = {what: at[name] for what, names in COLUMNS.items() for name in reversed(names) if name in at}
    lacking = [what for what in _NEEDED if what not in found]
    if lacking:
        known = " or ".join(COLUMNS[lacking[0]])
        what = f"the header has no column for the {_SAID[lacking[0]]}; name one {known}"
        hint = "A trace is JSON lines as Mooncake's, or comma-separated as Azure's."
        raise ConfigError(f"trace {path.name}, line 1: {what}. {hint}", param="trace")
    return found


_SAID: Final[Mapping[str, str]] = MappingProxyType(
    {"at": "arrival", "prompt": "prompt's tokens", "output": "output's tokens"}
)


def _row(path: Path, line: int, places: Mapping[str, tuple[int, str]], cells: Sequence[str]) -> Row:
    def cell(what: str, default: str = "") -> str:
        index, _ = places.get(what, (len(cells), ""))
        return cells[index].strip() if index < len(cells) else default

    def bad(what: str, wanted: str) -> ConfigError:
        said = f'"{cell(what)}"' if cell(what) else "nothing"
        message = f"trace {path.name}, line {line}: {places[what][1]}: {said}; give {wanted}"
        return ConfigError(message, param="trace")

    def whole(what: str, default: str = "") -> int:
        text = cell(what, default) or default
        try:
            number = float(text)
        except ValueError:
            raise bad(what, "a whole number") from None
        if not number.is_integer():  # false for nan and the infinities, too
            raise bad(what, "a whole number")
        return int(number)

    at_s = _instant(cell("at"))
    if at_s is None:
        raise bad("at", "seconds, or a date and time such as 2023-11-16 18:15:46.68")
    names = tuple(places[what][1] if what in places else what for what in (*_NEEDED, "priority"))
    return Row(
        at_s,
        whole("prompt"),
        whole("output"),
        cell("class"),
        cell("tenant"),
        whole("priority", "0"),
        (names[0], names[1], names[2], names[3]),
    )


def _instant(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(_FRACTION.sub(r"\1", text))
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
