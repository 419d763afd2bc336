"""Keeps tables that took long to read as flat arrays in files, for the next process.

One JSON file a replica in the user's cache folder. A file that is missing, damaged or of another version only
costs the time to read the tables again. It must not know where tables are from.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.decide.perf.source import NoTimes
from tokenmill.decide.perf.table import StepTable

FORMAT: Final = 1
"""Goes up when the numbers get another meaning."""

MAX_FILES: Final = 2000
"""Some 6 kB each; beyond it the oldest go."""


class _Entry(msgspec.Struct, frozen=True):
    key: str
    table: StepTable | None = None
    reason: str = ""


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Return the folder for cached tables: ``TOKENMILL_CACHE_DIR``, else where the system keeps caches."""
    own = environment.get("TOKENMILL_CACHE_DIR")
    home = Path(environment.get("HOME") or tempfile.gettempdir())
    base = Path(own) if own else Path(environment.get("XDG_CACHE_HOME") or home / ".cache") / "tokenmill"
    return base / "step-times"


class TableCache:
    """Tables by a key that says all they depend on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, key: str) -> StepTable | NoTimes | None:
        """Return what was kept under ``key``, or None."""
        try:
            entry = msgspec.json.decode(self._path(key).read_bytes(), type=_Entry)
        except (OSError, msgspec.DecodeError, ValueError):
            return None
        if entry.key != key:
            return None
        return entry.table if entry.table is not None else NoTimes(reason=entry.reason)

    def put(self, key: str, answer: StepTable | NoTimes) -> None:
        """Keep an answer. Where the folder cannot be written, it is not kept."""
        table = answer if isinstance(answer, StepTable) else None
        reason = answer.reason if isinstance(answer, NoTimes) else ""
        data = msgspec.json.encode(_Entry(key, table, reason))
        with contextlib.suppress(OSError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".table-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            Path(name).replace(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / f"{hashlib.sha256(f'{FORMAT} {key}'.encode()).hexdigest()[:32]}.json"

    def _make_room(self) -> None:
        files = list(self._folder.glob("*.json"))
        if len(files) >= MAX_FILES:
            oldest = sorted(files, key=lambda file: file.stat().st_mtime)
            for file in oldest[: len(files) - MAX_FILES + 1]:
                file.unlink(missing_ok=True)
