"""JSON schemas of the files that people write, for editors that complete and check while one types."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenmill.spec.docs import field_docs
from tokenmill.spec.factory import Factory
from tokenmill.spec.parts import Part


def factory_schema() -> dict[str, Any]:
    """Return JSON schema (2020-12) generated from the types, each field described by its docstring."""
    schema = file_schema(Factory)
    # The loader takes bare numbers and booleans as text here.
    for pairs in ("engine_args", "engine_env"):
        settings = schema["$defs"]["Stage"]["properties"][pairs]
        settings["additionalProperties"] = {"type": ["string", "number", "boolean"]}
    return schema


def file_schema(file: type[Part]) -> dict[str, Any]:
    """Return the JSON schema of one kind of file."""
    schema: dict[str, Any] = msgspec.json.schema(file)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    for kind in Part.__subclasses__():
        if kind.__name__ not in schema["$defs"]:
            continue  # another file's
        properties, docs = schema["$defs"][kind.__name__]["properties"], field_docs(kind)
        for field, encoded in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True):
            properties[encoded]["description"] = docs[field]
    schema["$defs"][file.__name__]["patternProperties"] = {"^x-": {}}
    return schema
