"""What each format's parser makes of what models write, and of what they should not have written."""

from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.text.tool_calls.formats import HERMES, LLAMA3_JSON, MISTRAL, PYTHONIC, format_named
from tokenmill.serve.text.tool_calls.parts import ArgumentsMade, CallBegan

from .reading import PARSERS, calls, of_format, parts_of, read

CITY = '{"city": "Zürich"}'
GOOD = [  # @ stands for CITY
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": @}\n</tool_call>', "", [CITY]),
    ("hermes", 'Wait.\n\n<tool_call>{"name":"weather","arguments":@}</tool_call>', "Wait.", [CITY]),
    (
        "hermes",
        '<tool_call>{"arguments": @, "name": "weather"}</tool_call>\n<tool_call>{"name": "weather"}',
        "",
        [CITY, "{}"],
    ),
    ("hermes", '<tool_call>{"name": "weather", "arguments": @}', "", [CITY]),
    ("hermes", '<tool_call>{"name": "weather"}</tool_call> Done.\n', " Done.", ["{}"]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": null}</tool_call>', "", ["{}"]),
    ("hermes", r'<tool_call>{"name": "weather", "arguments": "{\"a\": [1]}"}', "", ['{"a": [1]}']),
    ("hermes", '<tool_call>{"id": [1, {"x": "}"}], "name": "weather", "arguments": {}}', "", ["{}"]),
    ("llama3_json", '{"name": "weather", "parameters": @}', "", [CITY]),
    ("llama3_json", '\n{"type": "function", "name": "weather", "parameters": @}', "", [CITY]),
    ("llama3_json", '<|python_tag|>{"name": "weather", "parameters": @}', "", [CITY]),
    ("llama3_json", 'Hm. <|python_tag|>{"name": "weather", "parameters": {}}', "Hm.", ["{}"]),
    (
        "llama3_json",
        '{"name": "weather", "parameters": {}}; {"name": "weather", "parameters": @};\n',
        "",
        ["{}", CITY],
    ),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": @, "id": "123456789"}]', "", [CITY]),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {}} , {"name": "weather"}]', "", ["{}"] * 2),
    ("mistral", "[TOOL_CALLS]weather[ARGS]@", "", [CITY]),
    ("mistral", "Well [TOOL_CALLS]weather@[TOOL_CALLS]weather[ARGS] {}", "Well", [CITY, "{}"]),
    ("pythonic", '[weather(city="Zürich")]', "", [CITY]),
    ("pythonic", "<|python_start|>[weather(), weather(city='Zürich')]<|python_end|>", "", ["{}", CITY]),
    ("pythonic", "Ok:<|python_start|>[weather(a=[1, -2.5], b={'x': None}, c=True, d=(')',))]", "Ok:",
     ['{"a": [1, -2.5], "b": {"x": null}, "c": true, "d": [")"]}']),
    ("required", '[{"name": "weather", "arguments": @}]', "", [CITY]),
    ("required", ' [\n{"name":"weather","parameters":{}},{"name":"weather","arguments":@}]\n', "",
     ["{}", CITY]),
    ("named", "\n@\n", "", [CITY]),
]  # fmt: skip


@pytest.mark.parametrize(("parser", "text", "content", "arguments"), GOOD)
def test_calls(parser: str, text: str, content: str, arguments: list[str]) -> None:
    answer = read(PARSERS[parser](), text.replace("@", CITY))
    assert calls(answer) == [("weather", each) for each in arguments]
    assert answer.content == content
    assert all(call.whole for call in answer.calls)


PLAIN = [
    "",
    " \n",
    "Hello\n\n  world \n",
    "a < b, <tool>, [TOOL], {x}, <|python",
    '<tool_call>{"name": "weather", "arguments": {"a" 1}}</tool_call> and more',
    '<tool_call>{"name": "weather", "arguments": {"a": 01}}</tool_call>',
    '\n<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": 5, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": "{\\"a\\": \\"\\ud800\\"}"}</tool_call>',
    '<tool_call>{"arguments": {}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {}, "arguments": {}}</tool_call>',
    "<tool_call><function=weather></function></tool_call>",
    '<tool_call>{"name": "weather", "arguments": {"a": "line\nbreak"}}</tool_call>',
    '<tool_call>{"name": "weather", "arguments": {"a": 1',
    '{"name": "weather"}',
    '{"name": "nobody", "parameters": {}}',
    '{"answer": 42, "parameters": {}}',
    '{"name": "weather", "parameters": {"a": }}',
    '<|python_tag|>search.call(query="x")',
    '[TOOL_CALLS][{"name": "weather", "arguments": {"a": tru}}]',
    "[TOOL_CALLS][]",
    "[TOOL_CALLS]weather[ARGS]\n{}",
    "[TOOL_CALLS]weather[ARGS]{1}",
    "[TOOL_CALLS]" + "x" * 600 + "{}",
    "[TOOL_CALLS]",
    "[1, 2] is a list",
    "[weather, time]",
    "[nobody(a=1)]",
    "[weather(1)]",
    "[weather(a=b)]",
    "[weather(**{})]",
    "[weather(a={1})]",
    "[weather(a=1e999)]",
    "[weather(a='\\ud800')]",
    "[weather(a=1), 5]",
    "[weather(a=(1]]",
    "[weather(a='",
    "<|python_start|>print(1)<|python_end|>",
]


@pytest.mark.parametrize("text", PLAIN)
@pytest.mark.parametrize("parser", ["hermes", "llama3_json", "mistral", "pythonic"])
def test_what_is_no_call_is_content_to_the_letter(parser: str, text: str) -> None:
    answer = read(PARSERS[parser](), text)
    assert not [call for call in answer.calls if call.whole]
    assert (answer.content, answer.calls) == (text, [])


@pytest.mark.parametrize(
    "text", ["", "no", "{}", "[]", "[1]", '[{"name": "weather"', "[{}]", '[{"name": ""}]']
)
def test_a_forced_call_that_is_none_is_content(text: str) -> None:
    assert read(PARSERS["required"](), text).content == text
    if not text.startswith("{"):
        assert read(PARSERS["named"](), text).content == text


def test_what_comes_behind_is_content() -> None:
    text = '<tool_call>{"name": "weather", "arguments": {}}}</tool_call>!'
    answer = read(PARSERS["hermes"](), text)
    assert (calls(answer), answer.content) == ([("weather", "{}")], "}</tool_call>!")
    answer = read(PARSERS["named"](), "{} so")
    assert (calls(answer), answer.content) == ([("weather", "{}")], " so")


def test_good_calls_beside_a_broken_one() -> None:
    good = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    bad = '<tool_call>{"name": "weather", "arguments": {"a":: 1}}</tool_call>'
    answer = read(PARSERS["hermes"](), f"one {good}\n{bad}\n{good} two")
    assert calls(answer) == [("time", "{}")] * 2
    assert answer.content == f"one\n{bad} two"


def test_arguments_come_as_they_are_written() -> None:
    pieces = ['<tool_call>{"name": "wea', 'ther", "argu', 'ments": {"ci', 'ty": "Bern"', "}", "}</tool_call>"]
    parts = parts_of(PARSERS["hermes"](), pieces)
    assert parts[0] == CallBegan("id0", "weather")
    assert [part.text for part in parts if isinstance(part, ArgumentsMade)] == ['{"ci', 'ty": "Bern"', "}"]


@pytest.mark.parametrize(
    ("parser", "text", "arguments"),
    [
        ("hermes", 'Hm <tool_call>{"name": "weather", "arguments": {"a": "b', '{"a": "b'),
        ("llama3_json", 'Hm <|python_tag|>{"name": "weather", "parameters": {"a": "b', '{"a": "b'),
        ("mistral", 'Hm [TOOL_CALLS]weather[ARGS]{"a": ', '{"a": '),
        ("mistral", 'Hm [TOOL_CALLS][{"name": "weather", "arguments": {"a": ', '{"a": '),
        ("named", "{", "{"),
        ("required", '[{"name": "weather", "arguments": {"a', '{"a'),
    ],
)
def test_what_is_cut_off_is_a_call_without_an_end(parser: str, text: str, arguments: str) -> None:
    answer = read(PARSERS[parser](), text, cut=True)
    assert [(call.arguments, call.whole) for call in answer.calls] == [(arguments, False)]
    assert answer.content in ("", "Hm")
    broken = read(PARSERS[parser](), text, cut=False)
    assert (broken.calls, broken.content) == ([], text)


def test_a_call_cut_off_before_it_began_is_content() -> None:
    for text in ('<tool_call>{"name": "weat', "<tool_c"):
        assert read(PARSERS["hermes"](), text, cut=True).content == text


def test_further_calls_are_left_out_where_one_is_wanted() -> None:
    one = '<tool_call>{"name": "time", "arguments": {}}</tool_call>'
    assert len(read(of_format(HERMES, most=1), one * 3).calls) == 1
    listed = '[TOOL_CALLS][{"name": "time"}, {"name": "weather"}]'
    assert calls(read(of_format(MISTRAL, most=1), listed)) == [("time", "{}")]


def test_ids_are_the_models_where_the_format_has_them() -> None:
    answer = read(PARSERS["mistral"](), "[TOOL_CALLS]time[CALL_ID]abc123DEF[ARGS]{}")
    assert [(call.call_id, call.name) for call in answer.calls] == [("abc123DEF", "time")]
    assert read(PARSERS["mistral"](), "[TOOL_CALLS]time[ARGS]{}").calls[0].call_id == "id0"


QWEN = '<tool_call>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}\\n</tool_call>'
LLAMA = """{{- 'Respond in the format {"name": function name, "parameters": dictionary of argument name' }}"""
SHOWN = [
    (QWEN, HERMES),
    ("<tool_call>\n<function=example>\n<parameter=one>", None),
    ("<tool_call>{name}\n<arg_key>{key}</arg_key>", None),
    (LLAMA, LLAMA3_JSON),
    ("{{ '<|python_tag|>' }}", LLAMA3_JSON),
    ("{{ '[TOOL_CALLS]' + call }}", MISTRAL),
    ("in the format of [func_name1(params_name1=params_value1)]", PYTHONIC),
    ("{{ messages }}", None),
    ("", None),
]


@pytest.mark.parametrize(("template", "wanted"), SHOWN)
def test_the_template_shows_the_format(template: str, wanted: object) -> None:
    assert format_named("auto", template) is wanted


def test_formats_by_name() -> None:
    assert format_named("none", QWEN) is None
    assert format_named("llama3_json", QWEN) is LLAMA3_JSON
    with pytest.raises(ConfigError, match='tool_parser: "herms" is not known; use one of auto, none, hermes'):
        format_named("herms", "")
