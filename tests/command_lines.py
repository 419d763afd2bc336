"""Reading the command line of a launched server."""

from __future__ import annotations

from collections.abc import Iterable


def options_in(words: Iterable[str]) -> dict[str, str]:
    """Options with their values, "" for those without; each may stand there once, with one value."""
    found: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word
            assert name not in found, f"{name} twice"
            found[name] = ""
        else:
            assert not found[name], f"{name} {found[name]} {word}"
            found[name] = word
    return found
