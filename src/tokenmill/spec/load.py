"""Reading and writing factory files.

All that is wrong with a file is said at once, each with its line, its field and the fix.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec
import yaml

from tokenmill.errors import ConfigError
from tokenmill.spec.checks import check_factory
from tokenmill.spec.factory import API_VERSION, KIND, Factory
from tokenmill.spec.nodes import Reader, place_of
from tokenmill.spec.problems import FactoryError, Place, Problem

MAX_FILE_BYTES: Final = 1024 * 1024
"""A factory file is written by hand; a larger one is some other file."""


def load_factory(path: Path) -> Factory:
    """Read a factory file. Raises ConfigError: FactoryError has all that is wrong in it."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_FILE_BYTES} bytes: not a factory file")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; name a factory file (YAML)") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    return parse_factory(text, str(path))


def parse_factory(text: str, source: str) -> Factory:
    """Read a factory from YAML or JSON; ``source`` names it in messages. Raises FactoryError."""
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")  # JSON may be indented with tabs, which YAML refuses
    node = _compose(text, source)
    reader = Reader(source)
    if node is None:
        reader.blame(Place(1, 1), "", "the file is empty; a factory has metadata and stages")
        raise FactoryError(reader.problems)
    factory: Factory | None = reader.struct(node, Factory)
    if factory is not None:
        check_factory(factory, reader, complete=not reader.problems)
    if factory is None or reader.problems:
        raise FactoryError(sorted(reader.problems, key=lambda each: (each.place.line, each.place.column)))
    return factory


def dump_factory(factory: Factory) -> str:
    """Write a factory as YAML, without what is at its default."""
    tree = {"apiVersion": API_VERSION, "kind": KIND, **_written(factory)}
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100)


def _written(part: msgspec.Struct) -> dict[str, object]:
    """What of a part differs from its defaults; msgspec itself leaves nested and list defaults in."""
    tree: dict[str, object] = {}
    for item in msgspec.structs.fields(type(part)):
        value = getattr(part, item.name)
        default = item.default if item.default_factory is msgspec.NODEFAULT else item.default_factory()
        if value == default:
            continue
        if isinstance(value, msgspec.Struct):
            tree[item.encode_name] = _written(value)
        elif isinstance(value, list):
            parts = [_written(each) if isinstance(each, msgspec.Struct) else each for each in value]
            tree[item.encode_name] = parts
        else:
            tree[item.encode_name] = msgspec.to_builtins(value)
    return tree


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.SafeLoader))
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
    if len(documents) > 1:
        what = "a second document begins here; a file has one factory"
        raise FactoryError([Problem(source, place_of(documents[1]), "", what)])
    return documents[0] if documents else None
