"""Tiny models whose templates know tools."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenmill.testing.tiny_tokenizer import EOS_ID, write_tiny_tokenizer

FIRST_SPECIAL = 260
"""Id of the first further special token."""

SHOWS = {
    "hermes": '<tool_call>{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}</tool_call>',
    "llama3_json": '{\\"name\\": function name, \\"parameters\\": dictionary of argument name and its value}',
    "mistral": "[TOOL_CALLS]",
    "pythonic": "[func_name1(params_name1=params_value1)]",
    "nothing": "",
}
"""By format: what a template tells the model."""

TEMPLATE = (
    "{% if tools %}T{{ tools | length }}:{{ tools[0].function.name }}{{ '' if true else '@' }}|{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.a }}){% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tool_model(folder: Path, shows: str, special: Sequence[str] = ()) -> Path:
    """Write a tokenizer with the further special tokens ``special``, and a template that shows a format."""
    write_tiny_tokenizer(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE.replace("@", SHOWS[shows])
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    like = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [
        {**like, "id": FIRST_SPECIAL + at, "content": content} for at, content in enumerate(special)
    ]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


def tokens_of(text: str, special: Sequence[str] = ()) -> list[int]:
    """The ids of a model's output, end included; ``special`` as above."""
    ids = list(text.encode())
    for at, content in enumerate(special):
        mark = list(content.encode())
        where = 0
        while where <= len(ids) - len(mark):
            if ids[where : where + len(mark)] == mark:
                ids[where : where + len(mark)] = [FIRST_SPECIAL + at]
            where += 1
    return [*ids, EOS_ID]
