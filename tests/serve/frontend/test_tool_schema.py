"""Schemas of calls: references go on meaning what they meant."""

from __future__ import annotations

from tokenmill.serve.frontend.openai.tool_schema import calls_schema, parameters_of


def follow(schema, pointer: str):
    assert pointer.startswith("#/")
    for key in pointer[2:].split("/"):
        schema = schema[key]
    return schema


def test_references_find_their_own_definitions() -> None:
    functions = {
        name: {
            "parameters": {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/Thing"}, "all": {"items": [{"$ref": "#"}]}},
                "$defs": {"Thing": {"type": kind, "items": {"$ref": "#/$defs/Thing"}}},
            }
        }
        for name, kind in (("one", "string"), ("two", "array"))
    }
    schema = calls_schema(functions, several=True)
    for item, kind in zip(schema["items"]["anyOf"], ("string", "array"), strict=True):
        properties = item["properties"]["arguments"]["properties"]
        thing = follow(schema, properties["x"]["$ref"])
        assert thing["type"] == kind
        assert follow(schema, thing["items"]["$ref"]) == thing
        assert "properties" in follow(schema, properties["all"]["items"][0]["$ref"])
    assert functions["one"]["parameters"]["properties"]["x"] == {"$ref": "#/$defs/Thing"}


def test_what_is_missing_means_no_parameters() -> None:
    for function in ({}, {"parameters": None}, {"parameters": {}}):
        assert parameters_of(function) == {
            "type": "object",
            "properties": {},
            "additionalProperties": False,
        }
    assert parameters_of({"parameters": {"properties": {"a": {}}}})["type"] == "object"
    assert "$defs" not in calls_schema({"f": {}}, several=False)


def test_properties_may_be_called_ref() -> None:
    parameters = {"type": "object", "properties": {"$ref": {"type": "string"}}}
    schema = calls_schema({"f": {"parameters": parameters}}, several=True)
    assert schema["items"]["properties"]["arguments"] == parameters
