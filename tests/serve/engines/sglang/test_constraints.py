"""What shapes the output, in SGLang's words."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import BadRequest
from tokenmill.serve.engines.sglang.constraints import CONSTRAINTS, grammar_params

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TAG = {"type": "structural_tag", "format": {"type": "any_text"}}

GOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"response_format": {"type": "text"}}, {}),
    ({"response_format": {"type": "json_object"}}, {"json_schema": {"type": "object"}}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
        {"json_schema": SCHEMA},
    ),
    ({"response_format": TAG}, {"structural_tag": TAG}),
    ({"structured_outputs": {"json": SCHEMA}}, {"json_schema": SCHEMA}),
    ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, {"json_schema": SCHEMA}),
    ({"structured_outputs": {"json_object": True, "regex": None}}, {"json_schema": {"type": "object"}}),
    ({"structured_outputs": {"structural_tag": json.dumps(TAG)}}, {"structural_tag": TAG}),
]


@pytest.mark.parametrize(("given_", "expected"), GOOD)
def test_what_is_understood(given_: dict[str, Any], expected: dict[str, Any]) -> None:
    found = grammar_params(given_)
    assert {name: json.loads(text) for name, text in found.items()} == expected


def test_texts_go_as_they_are() -> None:
    assert grammar_params({"structured_outputs": {"regex": "a+"}}) == {"regex": "a+"}
    assert grammar_params({"structured_outputs": {"grammar": "root ::= x"}}) == {"ebnf": "root ::= x"}


@given(st.lists(st.text(min_size=1), min_size=1))
def test_a_choice_is_one_of_them(choices: list[str]) -> None:
    pattern = re.compile(grammar_params({"structured_outputs": {"choice": choices}})["regex"])
    assert all(pattern.fullmatch(choice) for choice in choices)
    assert not pattern.fullmatch("".join(choices) + "x")


BAD: list[dict[str, Any]] = [
    {"response_format": {"type": "xml"}},
    {"response_format": "json"},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
    {"structured_outputs": {}},
    {"structured_outputs": {"json": SCHEMA, "regex": "a"}},
    {"structured_outputs": {"colour": "blue"}},
    {"structured_outputs": {"regex": 5}},
    {"structured_outputs": {"choice": "a"}},
    {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
]


@pytest.mark.parametrize("constraints", BAD)
def test_what_is_not(constraints: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        grammar_params(constraints)
    assert caught.value.param in CONSTRAINTS
