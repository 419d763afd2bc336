"""The tool fields of a chat: checked, and made into what template, engine and parser need.

Exists so that chats without tools know nothing of them. It must not know streams or workers.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenmill.errors import BadRequest
from tokenmill.serve.frontend.openai.sampling import constraints_of, unsupported
from tokenmill.serve.frontend.openai.schema import ChatRequest, Json
from tokenmill.serve.frontend.openai.tool_schema import calls_schema, parameters_of
from tokenmill.serve.text.tokenizer import Tokenizer
from tokenmill.serve.text.tool_calls.forced import NamedCall, RequiredCalls
from tokenmill.serve.text.tool_calls.formats import ToolFormat
from tokenmill.serve.text.tool_calls.parts import PartsOut, ToolCallParser

MAX_TOOLS = 512
MAX_NAME_CHARS = 256

_ID_ALPHABET = string.ascii_letters + string.digits
_ID_CHARS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """What a chat needs. ``constraints``: ``Sampling.constraints``. ``tools``: for the template; None: it
    shows none. ``parser``: makes one for each choice; None: all text is content. ``shown``: special tokens
    that the parser must see."""

    constraints: dict[str, Json]
    tools: list[Any] | None = None
    parser: Callable[[], ToolCallParser] | None = None
    shown: frozenset[int] = frozenset()


def asks_for_calls(body: ChatRequest) -> bool:
    """Whether the answer must be a call, for which engines must be able to shape their output."""
    return body.tool_choice == "required" or isinstance(body.tool_choice, dict)


def tool_use(
    body: ChatRequest,
    constraints: Container[str],
    tool_format: ToolFormat | None,
    tokenizer: Tokenizer,
    randomness: random.Random,
) -> ToolUse:
    """Return how a chat uses tools. ``constraints``: what all engines understand. Raises BadRequest that
    names the field."""
    _check_old_fields(body)
    _check_messages(body.messages)
    functions = _functions(body.tools or ())
    named = _named(body.tool_choice, functions)
    if asks_for_calls(body) and not functions:
        raise BadRequest("tool_choice needs tools; give some, or leave it out", param="tool_choice")
    if not functions or body.tool_choice == "none":
        return ToolUse(constraints=constraints_of(body))

    def out() -> PartsOut:
        most = 1 if body.parallel_tool_calls is False else None
        return PartsOut(_id_maker(tool_format, randomness), most)

    if asks_for_calls(body):
        schema = calls_schema(functions, several=body.parallel_tool_calls is not False)
        if named is not None:
            schema = parameters_of(functions[named])
        return ToolUse(
            tools=body.tools,
            constraints=_constraint(body, schema, constraints),
            parser=lambda: RequiredCalls(out()) if named is None else NamedCall(out(), named),
        )
    if tool_format is None:
        return ToolUse(tools=body.tools, constraints=constraints_of(body))
    return ToolUse(
        tools=body.tools,
        constraints=constraints_of(body),
        parser=lambda: tool_format.make(out(), functions),
        shown=tokenizer.special_named(tool_format.marks),
    )


def _check_old_fields(body: ChatRequest) -> None:
    for name, fix in (("functions", "give them as tools"), ("function_call", "use tool_choice")):
        if getattr(body, name) not in (None, [], "none", "auto"):
            raise unsupported(name, fix)


def _id_maker(tool_format: ToolFormat | None, randomness: random.Random) -> Callable[[], str]:
    chars = tool_format.id_chars if tool_format is not None else 0
    before = "" if chars else "call_"
    return lambda: before + "".join(randomness.choices(_ID_ALPHABET, k=chars or _ID_CHARS))


def _functions(tools: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Return the functions by name. Raises BadRequest that names the tool."""
    if len(tools) > MAX_TOOLS:
        raise BadRequest(f"tools: at most {MAX_TOOLS}, got {len(tools)}", param="tools")
    functions: dict[str, dict[str, Any]] = {}
    for at, tool in enumerate(tools):
        where = f"tools[{at}]"
        kind = tool.get("type") if isinstance(tool, dict) else None
        if kind != "function":
            raise BadRequest(f'{where}.type must be "function"', param=f"{where}.type")
        function = tool.get("function")
        if not isinstance(function, dict):
            raise BadRequest(f"{where}.function must be an object with a name", param=f"{where}.function")
        name = function.get("name")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
            message = f"{where}.function.name must be a string of 1 to {MAX_NAME_CHARS} characters"
            raise BadRequest(message, param=f"{where}.function.name")
        if not isinstance(function.get("parameters") or {}, dict):
            message = f"{where}.function.parameters must be a JSON schema, an object"
            raise BadRequest(message, param=f"{where}.function.parameters")
        functions[name] = function
    return functions


def _named(choice: Json, functions: Container[str]) -> str | None:
    """Return the function that must be called, where ``choice`` names one. Raises BadRequest."""
    if choice in (None, "none", "auto", "required"):
        return None
    function = choice.get("function") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or choice.get("type") != "function" or not isinstance(function, dict):
        raise BadRequest(
            'tool_choice must be "none", "auto", "required", or '
            '{"type": "function", "function": {"name": ...}}',
            param="tool_choice",
        )
    name = function.get("name")
    if not isinstance(name, str) or name not in functions:
        raise BadRequest(f"tool_choice: there is no tool named {name!r} in tools", param="tool_choice")
    return name


def _constraint(body: ChatRequest, schema: dict[str, Any], known: Container[str]) -> dict[str, Json]:
    """Return the field that makes engines keep to ``schema``. A ``response_format`` shapes answers, which a
    call is not."""
    if body.structured_outputs not in (None, {}):
        raise BadRequest(
            'structured_outputs and this tool_choice exclude each other; leave one out, or use "auto"',
            param="structured_outputs",
        )
    if "response_format" in known:
        wanted = {"name": "tool_calls", "schema": schema}
        return {"response_format": {"type": "json_schema", "json_schema": wanted}}
    if "structured_outputs" in known:
        return {"structured_outputs": {"json": schema}}
    raise BadRequest(
        "tool_choice: this model's engines cannot be made to call a function, since they do not know "
        'response_format; use "auto" or "none"',
        param="tool_choice",
    )


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise BadRequest for calls that are none, before a template stumbles over them."""
    for at, message in enumerate(messages):
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        if calls is None:
            continue
        where = f"messages[{at}].tool_calls"
        if not isinstance(calls, list):
            raise BadRequest(f"{where} must be a list", param=where)
        for index, call in enumerate(calls):
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str):
                raise BadRequest(
                    f"{where}[{index}].function must be an object with a name",
                    param=f"{where}[{index}].function",
                )
            if not isinstance(function.get("arguments", ""), str | dict):
                raise BadRequest(
                    f"{where}[{index}].function.arguments must be the text of a JSON object",
                    param=f"{where}[{index}].function.arguments",
                )
