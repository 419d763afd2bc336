"""Reading and writing factory files.

All that is wrong with a file is said at once, each with its line, its field and the fix.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml

from tokenmill.spec.checks import check_factory
from tokenmill.spec.documents import read_document, read_text
from tokenmill.spec.factory import API_VERSION, KIND, Factory


def load_factory(path: Path) -> Factory:
    """Read a factory file. Raises ConfigError: FactoryError has all that is wrong in it."""
    return parse_factory(read_text(path, "factory file"), str(path))


def parse_factory(text: str, source: str) -> Factory:
    """Read a factory from YAML or JSON; ``source`` names it in messages. Raises FactoryError."""
    return read_document(text, source, Factory, check_factory, empty="metadata and stages")


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
