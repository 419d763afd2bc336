"""The sentence under a field, for help texts and editors: written once, where the field is declared."""

from __future__ import annotations

import ast
import inspect
import textwrap


def field_docs(kind: type) -> dict[str, str]:
    """Map each annotated field of a class, inherited ones too, to the docstring under it, on one line."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__.startswith("tokenmill."):
            docs.update(_own_docs(base))
    return docs


def _own_docs(kind: type) -> dict[str, str]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs: dict[str, str] = {}
    for item, after in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            docs[item.target.id] = " ".join(str(after.value.value).split()).replace("``", "`")
    return docs
