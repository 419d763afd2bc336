"""From a file a person wrote to a struct, by way of a YAML node graph.

Shared by all kinds of files (factory, fleet, ...). Knows nothing of any one's fields.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import yaml

from tokenmill.errors import ConfigError
from tokenmill.spec.nodes import Reader, place_of
from tokenmill.spec.problems import FactoryError, Place, Problem, in_order

MAX_FILE_BYTES: Final = 1024 * 1024
"""Such a file is written by hand; a larger one is some other file."""

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


def read_text(path: Path, kind: str) -> str:
    """Read a file's text. ``kind`` names it in messages ("factory file"). Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes: not a {kind}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name a {kind} (YAML)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_document(
    text: str, source: str, of: type[_Struct], check: Callable[[_Struct, Reader], None], *, empty: str
) -> _Struct:
    """Read the one document of a YAML or JSON text. ``source`` names it in messages.

    ``check`` notes what does not fit together in what could be read, ``Reader.problems`` has what could not;
    ``empty``: what such a file has. Raises FactoryError with all that is wrong.
    """
    reader = Reader(source)
    documents = compose_all(text, source)
    kind = of.__name__.lower()
    if len(documents) > 1:
        reader.blame(place_of(documents[1]), "", f"a second document begins here; a file has one {kind}")
        raise FactoryError(reader.problems)
    if not documents:
        reader.blame(Place(1, 1), "", f"the file is empty; a {kind} has {empty}")
        raise FactoryError(reader.problems)
    found: _Struct | None = reader.struct(documents[0], of)
    if found is not None:
        check(found, reader)
    if found is None or reader.problems:
        raise FactoryError(in_order(reader.problems))
    return found


def compose_all(text: str, source: str) -> list[yaml.Node]:
    """Return the documents of a YAML or JSON text that are not empty. Raises FactoryError."""
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # JSON may be indented with tabs, which YAML refuses
    try:
        return [node for node in yaml.compose_all(text, Loader=yaml.SafeLoader) if node is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
        what = error.problem or error.context or "cannot be read"
        raise FactoryError([Problem(source, place, "", f"not valid YAML: {what}")]) from None
    except RecursionError:
        raise FactoryError([Problem(source, Place(1, 1), "", "is nested too deeply")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"not valid YAML: character #x{error.character:04x} is not allowed"
        raise FactoryError([Problem(source, Place(line, 1), "", what)]) from None
