from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from tokenmill.clock import VirtualClock
from tokenmill.errors import BadRequest, ConfigError, TooLarge
from tokenmill.serve.text import template as template_module
from tokenmill.serve.text.template import ChatTemplate

TEMPLATES = {
    path.stem: path.read_text("utf-8")
    for path in sorted((Path(__file__).parent / "templates").glob("*.jinja"))
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather «now» & here",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "array", "items": {"type": "integer"}},
                },
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich"}'},
}

Make = Callable[..., Path]
Backends = dict[str, Callable[[], Backend]]

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["  padded \n", "<think>\nhm\n</think>\n\nyes", "{{ bos_token }}", "</s>", "日本", ""]
)
CONVERSATION = st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3).flatmap(
    lambda turns: st.tuples(st.none() | TEXT, st.booleans()).map(lambda ends: conversation(turns, *ends))
)


def conversation(turns: list[tuple[str, str]], system: str | None, answered: bool) -> list[dict[str, object]]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for asked, answer in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return messages if answered else messages[:-1]


@pytest.fixture(scope="module")
def truth(make_backend: Backends) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=make_backend["byte_level"](), **SPECIAL)


def outcome(render: Callable[[], str]) -> str:
    """What a rendering gives, with the two libraries' ways to refuse made one."""
    try:
        return render()
    except (BadRequest, TemplateError) as error:
        return f"refused: {error}"


def ours(name: str, **options: object) -> ChatTemplate:
    clock = VirtualClock(datetime.now(UTC).timestamp())
    return ChatTemplate({"default": TEMPLATES[name]}, special_tokens=SPECIAL, clock=clock, **options)


@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=30, deadline=None)
@given(messages=CONVERSATION, generation=st.booleans(), with_tools=st.booleans())
def test_same_text_as_transformers(
    truth: PreTrainedTokenizerFast,
    name: str,
    messages: list[dict[str, object]],
    generation: bool,
    with_tools: bool,
) -> None:
    options = {"add_generation_prompt": generation, "tools": TOOLS if with_tools else None}
    expected = outcome(
        lambda: truth.apply_chat_template(messages, chat_template=TEMPLATES[name], tokenize=False, **options)
    )
    assert outcome(lambda: ours(name).render(messages, **options)) == expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "extra",
    [
        {"enable_thinking": False, "reasoning_effort": "high", "date_string": "26 Jul 2024", "mode": "m"},
        {"documents": [{"title": "Ü", "text": "straße"}]},
        {"bos_token": "<other>"},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_extra_variables_as_transformers(
    truth: PreTrainedTokenizerFast, name: str, extra: dict[str, object]
) -> None:
    messages = [
        {"role": "user", "content": "hello", "name": None},
        {"role": "assistant", "content": "oh", "reasoning": "r"},
    ]
    messages.append({"role": "user", "content": "go on"})
    expected = truth.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, add_generation_prompt=True, **extra
    )
    assert ours(name).render(messages, **extra) == expected


@pytest.mark.parametrize("name", ["headers", "chatml", "turns", "plain", "bars"])
@pytest.mark.parametrize("end", ["The answer", "The answer is ", "trailing\n\n"])
def test_final_message_is_continued_as_transformers(
    truth: PreTrainedTokenizerFast, name: str, end: str
) -> None:
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": end}]
    expected = truth.apply_chat_template(
        messages, chat_template=TEMPLATES[name], tokenize=False, continue_final_message=True
    )
    text = ours(name).render(messages, add_generation_prompt=False, continue_final_message=True)
    assert text == expected


@pytest.mark.parametrize("name", ["headers", "chatml", "bars"])
def test_arguments_of_tool_calls_reach_each_template_as_it_wants_them(
    truth: PreTrainedTokenizerFast, name: str
) -> None:
    messages = [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
    ]
    given_as = (
        CALL if name == "bars" else {**CALL, "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    )
    expected = truth.apply_chat_template(
        [messages[0], {**messages[1], "tool_calls": [given_as]}],
        chat_template=TEMPLATES[name],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert '{"city": "Zürich"}' in expected
    assert ours(name).render(messages) == expected
    assert messages[1]["tool_calls"] == [CALL]


def test_text_parts_become_what_the_template_takes() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    wanting_parts = "{% for m in messages %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endfor %}"
    both = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for p in m.content %}<{{ p['text'] }}>{% endfor %}{% endif %}{% endfor %}"
    )
    for source, content, expected in (
        ("{{ messages[0].content }}", parts, "one\ntwo"),
        ("{{ messages[0].content }}", "one", "one"),
        ("{{ messages[0].content }}", [], ""),
        ("{% for line in messages[0].content.split() %}{{ line }}{% endfor %}", parts, "onetwo"),
        (wanting_parts, parts, "<one><two>"),
        (wanting_parts, "one", "<one>"),
        (both, parts, "<one><two>"),
        (both, "one", "one"),
    ):
        message = {"role": "user", "content": content}
        assert ChatTemplate({"default": source}).render([message]) == expected


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([{"type": "image_url", "image_url": {"url": "x"}}], "image_url"),
        ([{"type": "text"}], "text"),
        (["bare"], "str"),
        (7, "must be a string"),
        ({"type": "text", "text": "x"}, "must be a string"),
    ],
)
def test_other_content_is_refused_by_name(content: object, said: str) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "user", "content": content}]
    with pytest.raises(BadRequest, match=said) as caught:
        ours("plain").render(messages)
    assert caught.value.param == "messages[1].content"


def test_malformed_messages_are_refused_by_name() -> None:
    for messages, param in (
        ([], "messages"),
        (["x"], "messages[0].role"),
        ([{"content": "x"}], "messages[0].role"),
    ):
        with pytest.raises(BadRequest) as caught:
            ours("plain").render(messages)
        assert caught.value.param == param


def test_template_speaks_for_itself() -> None:
    with pytest.raises(BadRequest) as caught:
        ours("turns").render([{"role": "system", "content": "x"}])
    assert (caught.value.message, caught.value.param) == ("System role not supported", "messages")


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].nothing.at_all }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[9]['x']['y'] }}",
        "{{ messages[0].__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_whatever_goes_wrong_inside_is_a_bad_request(source: str) -> None:
    with pytest.raises(BadRequest, match="cannot render"):
        ChatTemplate({"default": source}).render([{"role": "user", "content": "x"}])


def test_continuing_and_generating_exclude_each_other() -> None:
    messages = [{"role": "assistant", "content": "x"}]
    with pytest.raises(BadRequest, match="exclude"):
        ours("plain").render(messages, continue_final_message=True)
    for last in ({"role": "assistant"}, {"role": "assistant", "content": None}):
        with pytest.raises(BadRequest, match=r"messages\[0\]\.content is missing"):
            ours("plain").render([last], continue_final_message=True, add_generation_prompt=False)
    with pytest.raises(BadRequest, match="leaves out"):
        ChatTemplate({"default": "content"}).render(
            messages, continue_final_message=True, add_generation_prompt=False
        )


def test_time_comes_from_the_clock() -> None:
    clock = VirtualClock(datetime(2031, 5, 6, tzinfo=UTC).timestamp() + 43_200)
    template = ChatTemplate({"default": "{{ strftime_now('%d %B %Y') }}"}, clock=clock)
    assert template.render([{"role": "user"}]) == "06 May 2031"


def test_length_and_time_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    class Running(VirtualClock):
        def now(self) -> float:
            self.advance_to(self._now + 0.1)
            return self._now

    source = "{% for i in range(90000) %}{{ messages[0].content }}{% endfor %}"
    messages = [{"role": "user", "content": "x" * 100}]
    with pytest.raises(TooLarge):
        ChatTemplate({"default": source}, clock=Running()).render(messages)
    monkeypatch.setattr(template_module, "MAX_CHARS", 1000)
    with pytest.raises(TooLarge):
        ChatTemplate({"default": source}).render(messages)


def test_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "x"}], "name": None}]
    before = json.dumps(messages)
    ours("turns").render(messages, add_generation_prompt=False, continue_final_message=True)
    assert json.dumps(messages) == before


ASK = [{"role": "user", "content": "x"}]


def test_templates_are_found_where_checkpoints_keep_them(checkpoint: Make, make_backend: Backends) -> None:
    folder = checkpoint(make_backend["byte_level"](), special_tokens_map={"bos_token": {"content": "<s>"}})
    assert ChatTemplate.load(folder) is None
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "config{{ bos_token }}"}))
    assert rendered(folder) == "config<s>"
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert (rendered(folder), rendered(folder, tools=TOOLS)) == ("plain", "tools")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert rendered(folder) == "json"
    (folder / "chat_template.jinja").write_text("jinja")
    assert rendered(folder, tools=TOOLS) == "jinja"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("jinja tools")
    assert (rendered(folder), rendered(folder, tools=TOOLS)) == ("jinja", "jinja tools")


def rendered(folder: Path, **options: object) -> str:
    template = ChatTemplate.load(folder)
    assert template is not None
    return template.render(ASK, **options)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{% for %}", "line 1"),
        ("{{ x | nofilter }}", "nofilter"),
        ([{"name": "default"}], "name and a template"),
        ([{"name": "rag", "template": "x"}], "'default'"),
        (7, "string or a list"),
    ],
)
def test_bad_template_files_are_named(tmp_path: Path, value: object, said: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    with pytest.raises(ConfigError, match=said) as caught:
        ChatTemplate.load(tmp_path)
    assert "tokenizer_config.json" in caught.value.message


def test_unreadable_template_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        ChatTemplate.load(tmp_path)
