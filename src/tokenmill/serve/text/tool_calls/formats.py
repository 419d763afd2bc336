"""The formats that are known, and which one a model's chat template teaches.

Must not know requests or tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Final

from tokenmill.errors import ConfigError
from tokenmill.serve.text.tool_calls import hermes, llama3_json, mistral, pythonic
from tokenmill.serve.text.tool_calls.parts import PartsOut, ToolCallParser


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """A way to write calls. ``marks``: text that is often a token which is not shown. ``id_chars``: how many
    letters and digits a call's id must have, since templates of such models refuse others; 0: any."""

    name: str
    marks: tuple[str, ...]
    make: Callable[[PartsOut, Container[str]], ToolCallParser]
    """Takes the names of the functions that are offered."""
    id_chars: int = 0


HERMES: Final = ToolFormat(
    "hermes", (hermes.OPENING, hermes.CLOSING), lambda out, _known: hermes.HermesParser(out)
)
LLAMA3_JSON: Final = ToolFormat("llama3_json", (llama3_json.TAG,), llama3_json.Llama3JsonParser)
MISTRAL: Final = ToolFormat(
    "mistral",
    (mistral.MARK, mistral.ARGS, mistral.CALL_ID),
    lambda out, _known: mistral.MistralParser(out),
    id_chars=9,
)
PYTHONIC: Final = ToolFormat("pythonic", (pythonic.OPENING, pythonic.CLOSING), pythonic.PythonicParser)

_FORMATS: Final = {each.name: each for each in (HERMES, LLAMA3_JSON, MISTRAL, PYTHONIC)}

_OTHER_TAGS: Final = ("<function=", "<arg_key>", "<parameter=")
"""Templates with these write something other than JSON between Hermes' tags."""


def format_named(name: str, template: str) -> ToolFormat | None:
    """Return a model's format: the named one, none, or for "auto" the one that the text of its chat template
    shows, None where it shows none. Raises ConfigError for an unknown name."""
    if name == "auto":
        return _shown_in(template)
    if name == "none":
        return None
    if name not in _FORMATS:
        known = ", ".join(["auto", "none", *_FORMATS])
        raise ConfigError(f'tool_parser: "{name}" is not known; use one of {known}', param="tool_parser")
    return _FORMATS[name]


def _shown_in(template: str) -> ToolFormat | None:
    if mistral.MARK in template:
        return MISTRAL
    if hermes.OPENING in template:
        return None if any(tag in template for tag in _OTHER_TAGS) else HERMES
    if "[func_name1(" in template:
        return PYTHONIC
    # As it stands in the text, or in a string of it.
    if '"parameters": dictionary' in template or '\\"parameters\\": dictionary' in template:
        return LLAMA3_JSON
    return LLAMA3_JSON if llama3_json.TAG in template else None
