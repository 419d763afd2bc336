"""JSON schemas of calls, for engines that can be made to keep to one. It must not know requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
_ROOT = "#"


def parameters_of(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a function's arguments, an object."""
    parameters = function.get("parameters")
    if not parameters:
        return dict(_NO_PARAMETERS)
    return parameters if "type" in parameters else {"type": "object", **parameters}


def calls_schema(functions: Mapping[str, Mapping[str, Any]], *, several: bool) -> dict[str, Any]:
    """Return the schema of a list of calls, at least one. References inside the functions' own schemas go on
    meaning what they meant: each such schema is kept whole under ``$defs``."""
    definitions: dict[str, Any] = {}
    calls = []
    for at, (name, function) in enumerate(functions.items()):
        key = f"tool_{at}"
        parameters = parameters_of(function)
        moved = _moved(parameters, f"{_ROOT}/$defs/{key}")
        if moved != parameters:
            definitions[key] = moved
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"type": "string", "enum": [name]}, "arguments": moved},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = {
        "type": "array",
        "minItems": 1,
        "items": calls[0] if len(calls) == 1 else {"anyOf": calls},
    }
    if not several:
        schema["maxItems"] = 1
    if definitions:
        schema["$defs"] = definitions
    return schema


def _moved(schema: Any, root: str) -> Any:
    """Return a schema whose references to its own root mean ``root``."""
    if isinstance(schema, list):
        return [_moved(each, root) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: root + value.removeprefix(_ROOT)
        if key == "$ref" and isinstance(value, str) and value.startswith(_ROOT)
        else _moved(value, root)
        for key, value in schema.items()
    }
