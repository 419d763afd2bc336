"""Which plug-ins are installed here, by name. Loads none of them."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Final

ROUTER_POLICIES: Final = "tokenmill.router_policies"
"""Entry points of this group are classes that choose workers: ``decide.router.types.RouterPolicy``."""


def installed(group: str) -> list[str]:
    """Return the names of a group's entry points, sorted."""
    return sorted({point.name for point in entry_points(group=group)})
