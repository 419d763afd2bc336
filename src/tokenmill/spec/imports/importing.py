"""One file in, a factory and its losses out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from tokenmill.spec.documents import compose_all
from tokenmill.spec.factory import Factory
from tokenmill.spec.imports import dynamo, kserve
from tokenmill.spec.imports.assembling import Found, assemble
from tokenmill.spec.imports.option_files import OptionFiles
from tokenmill.spec.imports.pods import why_lost
from tokenmill.spec.imports.tree import Item, Loss, Report, lose_the_rest, read_tree
from tokenmill.spec.problems import FactoryError, Place, Problem, did_you_mean, in_order

_READERS: Final[Mapping[str, Callable[[Item, OptionFiles], Found]]] = {
    dynamo.KIND: dynamo.read_graph,
    kserve.KIND: kserve.read_service,
}

KINDS: Final = tuple(_READERS)
"""What can be imported."""


@dataclass(frozen=True)
class Imported:
    """``losses``: in the file's order; what was not carried over, or only by a guess."""

    factory: Factory
    kind: str
    losses: list[Loss]


def import_factory(text: str, source: str, name: str = "") -> Imported:
    """Return the factory that a deployment file declares. ``source`` names it in messages; ``name``: which
    deployment, where it has several. Raises FactoryError with all that is wrong in it.
    """
    report = Report(source)
    documents = [read_tree(node, report) for node in compose_all(text, source)]
    root, kind = _chosen(documents, report, name)
    files = OptionFiles()
    for document in documents:
        if _kind(document) == "ConfigMap":
            files.add(document)
    found = _READERS[kind](root, files)
    factory = assemble(found) if not report.problems else None
    if factory is None:
        raise FactoryError(in_order(report.problems))
    lose_the_rest(root, why_lost)
    for other in documents:
        if other is not root and not other.touched():
            what = _kind(other) or "document"
            shown = f"{what} {_name(other)}".strip()
            report.losses.append(Loss(shown, other.place, "only the deployment itself is read"))
    losses = sorted(report.losses, key=lambda each: (each.place.line, each.place.column))
    return Imported(factory, kind, losses)


def _chosen(documents: list[Item], report: Report, name: str) -> tuple[Item, str]:
    """Return the deployment to read, and its kind. Raises FactoryError."""
    fitting = [item for item in documents if _kind(item) in _READERS]
    named = [item for item in fitting if not name or _name(item) == name]
    if len(named) == 1:
        return named[0], _kind(named[0])
    place = (named or fitting or documents)[0].place if documents else Place(1, 1)
    if not fitting:
        kinds = ", ".join(dict.fromkeys(kind for item in documents if (kind := _kind(item))))
        hint = did_you_mean(kinds, KINDS)
        has = f"it has {kinds}" if kinds else "it is empty" if not documents else 'it has no "kind:"'
        message = f"there is no {' and no '.join(KINDS)} here; {has}.{hint}"
    else:
        names = ", ".join(_name(item) for item in fitting)
        message = f"its deployments are {names}; name one of them with --name"
    raise FactoryError([Problem(report.source, place, "", message)])


def _kind(item: Item) -> str:
    return _plain(item, "kind")


def _name(item: Item) -> str:
    metadata = item.value.get("metadata") if isinstance(item.value, dict) else None
    return _plain(metadata, "name") if metadata is not None else ""


def _plain(item: Item, name: str) -> str:
    """Look a text up without marking it as read."""
    found = item.value.get(name) if isinstance(item.value, dict) else None
    return found.value if found is not None and isinstance(found.value, str) else ""
