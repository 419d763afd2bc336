"""How tests read text with a parser."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from tokenmill.serve.text.tool_calls.answer import ToolAnswer, joined
from tokenmill.serve.text.tool_calls.forced import NamedCall, RequiredCalls
from tokenmill.serve.text.tool_calls.formats import HERMES, LLAMA3_JSON, MISTRAL, PYTHONIC, ToolFormat
from tokenmill.serve.text.tool_calls.parts import Part, PartsOut, ToolCallParser

KNOWN = ("weather", "time", "no.args")


def numbered() -> Callable[[], str]:
    numbers = itertools.count()
    return lambda: f"id{next(numbers)}"


def of_format(which: ToolFormat, most: int | None = None) -> ToolCallParser:
    return which.make(PartsOut(numbered(), most), KNOWN)


PARSERS: dict[str, Callable[[], ToolCallParser]] = {
    "hermes": lambda: of_format(HERMES),
    "llama3_json": lambda: of_format(LLAMA3_JSON),
    "mistral": lambda: of_format(MISTRAL),
    "pythonic": lambda: of_format(PYTHONIC),
    "required": lambda: RequiredCalls(PartsOut(numbered())),
    "named": lambda: NamedCall(PartsOut(numbered()), "weather"),
}


def parts_of(parser: ToolCallParser, pieces: Sequence[str], *, cut: bool = False) -> list[Part]:
    parts = [part for piece in pieces for part in parser.push(piece)]
    return parts + parser.finish(cut=cut)


def read(parser: ToolCallParser, *pieces: str, cut: bool = False) -> ToolAnswer:
    return joined(parts_of(parser, pieces, cut=cut))


def calls(answer: ToolAnswer) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in answer.calls]
