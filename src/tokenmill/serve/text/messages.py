"""Messages as clients send them, made into what chat templates are written for.

Must not know Jinja's environment or any particular model: what a template wants is told by its syntax
tree (``content_form``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TypeVar

from jinja2 import nodes

from tokenmill.errors import BadRequest

Message = dict[str, object]

_N = TypeVar("_N", bound=nodes.Node)
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class ContentForm(Enum):
    """What a template can take as a message's content."""

    TEXT = "text"
    """Strings only: text parts are joined by line breaks."""
    EITHER = "either"
    """Strings, and lists of parts, which it goes through itself."""
    PARTS = "parts"
    """Lists of parts only: a string becomes one text part."""


def content_form(tree: nodes.Template) -> ContentForm:
    """Return what a template's loops and tests say about the content it expects."""
    if not any(_reads_parts(loop) for loop in tree.find_all(nodes.For)):
        return ContentForm.TEXT
    tests = {test.name for test in tree.find_all(nodes.Test)}
    return ContentForm.EITHER if tests & {"string", "iterable", "sequence", "mapping"} else ContentForm.PARTS


def prepare(messages: Sequence[Mapping[str, object]], form: ContentForm) -> list[Message]:
    """Return copies of ``messages`` without null fields and with content in the form the template takes.

    Reasoning of earlier turns is given under each of the names that templates read. The caller's messages
    stay as they are.

    Raises:
        BadRequest: no messages, a message without a role, or content that is not text; names the field.
    """
    if not messages:
        raise BadRequest("messages must not be empty", param="messages")
    prepared = []
    for at, original in enumerate(messages):
        if not isinstance(original, Mapping) or not isinstance(original.get("role"), str):
            raise BadRequest(f"messages[{at}] must be an object with a role", param=f"messages[{at}].role")
        message = {name: value for name, value in original.items() if value is not None}
        reasoning = next((message[name] for name in _REASONING_FIELDS if name in message), None)
        if reasoning is not None:
            message = {"thinking": reasoning, **message, "reasoning_content": reasoning}
        if "content" in message:
            message["content"] = _content(message["content"], form, f"messages[{at}].content")
        prepared.append(message)
    return prepared


def parse_arguments(messages: Sequence[Message]) -> bool:
    """Turn tool calls' ``arguments`` from JSON text, as clients send them, into the objects that most
    templates expect; text that holds no object stays. Works in place; True if anything changed."""
    changed = False
    for message in messages:
        calls = message.get("tool_calls")
        if not isinstance(calls, list):
            continue
        parsed = [_with_object_arguments(call) for call in calls]
        if parsed != calls:
            message["tool_calls"] = parsed
            changed = True
    return changed


def _with_object_arguments(call: object) -> object:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": value}} if isinstance(value, dict) else call


def _content(content: object, form: ContentForm, param: str) -> object:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if form is ContentForm.PARTS else content
    if not isinstance(content, list):
        raise BadRequest(f"{param} must be a string or a list of text parts", param=param)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadRequest(
                f"{param} holds a part of type {kind!r}; this model takes only text parts, each with a text",
                param=param,
            )
        texts.append(part["text"])
    return "\n".join(texts) if form is ContentForm.TEXT else content


def _reads_parts(loop: nodes.For) -> bool:
    """True for a loop over something named content whose body looks into parts."""
    names = [node.name for node in _and_below(loop.iter, nodes.Name)]
    fields = [node.attr for node in _and_below(loop.iter, nodes.Getattr)]
    fields += [_constant(node.arg) for node in _and_below(loop.iter, nodes.Getitem)]
    if "content" not in [*names, *fields]:
        return False
    inside = {node.attr for node in loop.find_all(nodes.Getattr)}
    inside |= {_constant(node.arg) for node in loop.find_all(nodes.Getitem)}
    return bool(inside & {"type", "text"})


def _and_below(node: nodes.Node, kind: type[_N]) -> list[_N]:
    return [*([node] if isinstance(node, kind) else []), *node.find_all(kind)]


def _constant(node: nodes.Node) -> str:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else ""
