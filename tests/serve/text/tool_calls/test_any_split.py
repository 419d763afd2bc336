"""However a text is cut, its content and calls are the same, and nothing of it is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.serve.text.tool_calls.json_value import JsonValue, State

from .reading import PARSERS, calls, read

WORDS = [
    "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "abc", "\n", " ",
    '{"name": "weather", "arguments": {"a": [1, "x\\u00e9\\n"]}}', '{"name": "time", "parameters": {}}',
    '{"name": "weather", "arguments": {"a": ', '{"name": ', '"', "{", "}", "[", "]", ",", "weather", "time",
    ")", "(", "[weather(", 'city="x"', "<|python_start|>", "<|python_end|>", "<", "é", "\\", "null", ";",
    "tool_call>",
]  # fmt: skip
TEXT = st.lists(st.sampled_from(WORDS), max_size=14).map("".join) | st.text(max_size=20)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
OBJECT = st.dictionaries(st.text(max_size=5), JSON, max_size=3)


@st.composite
def cut(draw: st.DrawFn, texts: st.SearchStrategy[str]) -> tuple[str, list[str]]:
    """A text, and the same in pieces."""
    text = draw(texts)
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    ends = [*places, len(text)]
    return text, [text[start:end] for start, end in zip([0, *places], ends, strict=True)]


@pytest.mark.parametrize("parser", PARSERS)
@settings(max_examples=150, deadline=None)
@given(made=cut(TEXT), cut_off=st.booleans())
def test_cuts_do_not_matter(parser: str, made: tuple[str, list[str]], cut_off: bool) -> None:
    text, pieces = made
    whole = read(PARSERS[parser](), text, cut=cut_off)
    assert read(PARSERS[parser](), *pieces, cut=cut_off) == whole
    assert read(PARSERS[parser](), *text, cut=cut_off) == whole
    if not whole.calls:
        assert whole.content == text
    for call in whole.calls:
        if call.whole:
            assert isinstance(json.loads(call.arguments), dict)


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": {json.dumps(name)}, "arguments": {arguments}}}\n</tool_call>'


def mistral(name: str, arguments: str) -> str:
    return f'[TOOL_CALLS][{{"name": {json.dumps(name)}, "arguments": {arguments}}}]'


def llama(name: str, arguments: str) -> str:
    return f'{{"name": {json.dumps(name)}, "parameters": {arguments}}}'


def pythonic(name: str, arguments: str) -> str:
    values = ", ".join(f"{key}={value!r}" for key, value in json.loads(arguments).items())
    return f"[{name}({values})]"


WRITERS = {"hermes": hermes, "mistral": mistral, "llama3_json": llama}


@pytest.mark.parametrize("parser", WRITERS)
@settings(max_examples=60, deadline=None)
@given(arguments=OBJECT, indent=st.none() | st.just(2), ascii_only=st.booleans(), data=st.data())
def test_any_arguments_come_through(
    parser: str, arguments: dict[str, object], indent: int | None, ascii_only: bool, data: st.DataObject
) -> None:
    text = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    _, pieces = data.draw(cut(st.just(WRITERS[parser]("weather", text))))
    answer = read(PARSERS[parser](), *pieces)
    assert (calls(answer), answer.content) == ([("weather", text)], "")


@settings(max_examples=60, deadline=None)
@given(arguments=st.dictionaries(st.sampled_from(["a", "b_c", "d1"]), JSON, max_size=3), data=st.data())
def test_any_python_literals_come_through(arguments: dict[str, object], data: st.DataObject) -> None:
    _, pieces = data.draw(cut(st.just(pythonic("weather", json.dumps(arguments)))))
    (call,) = read(PARSERS["pythonic"](), *pieces).calls
    assert json.loads(call.arguments) == arguments


@settings(max_examples=200, deadline=None)
@given(made=cut(JSON.map(json.dumps) | st.text(alphabet='[]{}":,0123.e-+tru\\n "ab', max_size=12)))
def test_json_is_told_from_what_is_none(made: tuple[str, list[str]]) -> None:
    text, pieces = made
    value, read_to = JsonValue(), 0
    for piece in [*pieces, "\n"]:  # behind a number something must come
        end = value.push(piece)
        read_to += end
        if end < len(piece):
            break
    try:
        json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        assert value.state is not State.DONE or text[read_to:].strip(" \t\r\n")
    else:
        assert value.state is State.DONE
        assert not text[read_to:].strip(" \t\r\n")


def test_depth_is_bounded() -> None:
    for depth, state in ((128, State.DONE), (129, State.BROKEN)):
        value = JsonValue()
        value.push("[" * depth + "]" * depth)
        assert value.state is state
