"""What shapes the output, from the client's words to SGLang's sampling parameters. No I/O.

Clients say it as OpenAI's ``response_format`` or vLLM's ``structured_outputs``; SGLang has one parameter for
each kind of grammar, and takes one of them. It must not know requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from tokenmill.errors import BadRequest

CONSTRAINTS = ("response_format", "structured_outputs")
"""Fields that are understood."""

_ANY_OBJECT = '{"type": "object"}'

_KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def grammar_params(constraints: Mapping[str, Any]) -> dict[str, str]:
    """Return SGLang's parameters; none where nothing is asked. Raises BadRequest for what it cannot do."""
    found: dict[str, str] = {}
    if "response_format" in constraints:
        found |= _response_format(constraints["response_format"])
    if "structured_outputs" in constraints:
        found |= _structured_outputs(constraints["structured_outputs"])
    if len(found) > 1:
        raise BadRequest("ask for one grammar, not for several", param="response_format")
    return found


def _response_format(wanted: object) -> dict[str, str]:
    fields = dict(_items(wanted))
    kind = fields.get("type")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"json_schema": _ANY_OBJECT}
    if kind == "json_schema":
        schema = fields.get("json_schema")
        if isinstance(schema, Mapping) and isinstance(schema.get("schema"), Mapping):
            return {"json_schema": _json(schema["schema"])}
        raise BadRequest("response_format: json_schema.schema is missing", param="response_format")
    if kind == "structural_tag":
        return {"structural_tag": _json(wanted)}
    raise BadRequest(f"response_format: type {kind!r} is not known to SGLang", param="response_format")


def _structured_outputs(wanted: object) -> dict[str, str]:
    given = {name: value for name, value in _items(wanted) if value not in (None, False)}
    if len(given) != 1 or not set(given) <= set(_KINDS):
        known = ", ".join(_KINDS)
        raise BadRequest(f"structured_outputs: name one of {known} for SGLang", param="structured_outputs")
    ((kind, value),) = given.items()
    if kind == "json_object":
        return {"json_schema": _ANY_OBJECT}
    if kind == "json":
        return {"json_schema": value if isinstance(value, str) else _json(value)}
    if kind == "choice" and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return {"regex": "(" + "|".join(re.escape(each) for each in value) + ")"}
    if kind == "structural_tag":
        return {"structural_tag": value if isinstance(value, str) else _json(value)}
    if kind in ("regex", "grammar") and isinstance(value, str):
        return {"regex" if kind == "regex" else "ebnf": value}
    raise BadRequest(f"structured_outputs: {kind} cannot be read", param="structured_outputs")


def _items(wanted: object) -> list[tuple[str, object]]:
    return list(wanted.items()) if isinstance(wanted, Mapping) else []


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
