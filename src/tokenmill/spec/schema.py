"""The factory file's JSON schema, for editors that complete and check while one types."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenmill.spec import factory as parts
from tokenmill.spec.docs import field_docs


def factory_schema() -> dict[str, Any]:
    """Return JSON schema (2020-12) generated from the types, each field described by its docstring."""
    schema: dict[str, Any] = msgspec.json.schema(parts.Factory)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for name, definition in schema["$defs"].items():
        kind = getattr(parts, name, None)
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            continue
        docs = field_docs(kind)
        for field, encoded in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
            definition["properties"][encoded]["description"] = docs[field]
    # The loader takes bare numbers and booleans as text here.
    engine_args = schema["$defs"]["Stage"]["properties"]["engine_args"]
    engine_args["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    schema["$defs"]["Factory"]["patternProperties"] = {"^x-": {}}
    return schema
