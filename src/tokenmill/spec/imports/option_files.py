"""Options that an engine reads from a file, where that file is a ConfigMap beside the deployment.

Knows how such files are written, and nothing of what the options mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import msgspec
import yaml

from tokenmill.spec.documents import compose_all
from tokenmill.spec.imports.tree import Item, Report, read_tree
from tokenmill.spec.problems import FactoryError


@dataclass
class OptionFiles:
    """The ConfigMaps' files by name."""

    items: dict[str, Item] = field(default_factory=dict)

    def add(self, document: Item) -> None:
        """Remember a ConfigMap's files."""
        for name, item in (
            (document.get("data") or Item(document.report, "", document.place)).entries().items()
        ):
            if isinstance(item.value, str):
                self.items[name] = item

    def options(self, path: str) -> dict[str, str] | None:
        """Return the options in the file that a container finds at ``path``, "a.b" for nested ones.

        None where there is no such file, or it cannot be read.
        """
        item = self.items.get(path.rpartition("/")[2])
        if item is None or not isinstance(item.value, str):
            return None
        try:
            for node in compose_all(item.value, item.path):
                read_tree(node, Report(item.path))  # it must not unfold without bound
            content = yaml.safe_load(item.value)
        except (FactoryError, yaml.YAMLError):
            return None
        if not isinstance(content, dict):
            return None
        item.take()
        return {name.replace("-", "_"): text for name, text in _flat(content, "")}


def _flat(content: Mapping[object, object], path: str) -> Iterator[tuple[str, str]]:
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{path}{name}.")
        elif value is not None:
            yield f"{path}{name}", value if isinstance(value, str) else msgspec.json.encode(value).decode()
