"""Parts joined: what a whole choice says and calls.

Exists for answers that are not streamed. Must not know OpenAI's JSON.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenmill.serve.text.tool_calls.parts import (
    ArgumentsMade,
    CallBegan,
    CallBroken,
    CallEnded,
    Content,
    Part,
)


@dataclass(slots=True)
class Call:
    """``arguments``: JSON text; ``whole`` False: it was cut off."""

    call_id: str
    name: str
    arguments: str = ""
    whole: bool = False


@dataclass(slots=True)
class ToolAnswer:
    """``content``: "" where there are only calls."""

    content: str = ""
    calls: list[Call] = field(default_factory=list)


def joined(parts: Iterable[Part]) -> ToolAnswer:
    """Join the parts of one choice; a broken call is content."""
    answer = ToolAnswer()
    texts: list[str] = []
    arguments: list[str] = []
    for part in parts:
        if isinstance(part, ArgumentsMade):
            arguments.append(part.text)
            continue
        if isinstance(part, Content | CallBroken):
            texts.append(part.text)
        if isinstance(part, CallBegan):
            answer.calls.append(Call(part.call_id, part.name))
            arguments = []
        elif isinstance(part, CallEnded):
            answer.calls[-1].arguments = "".join(arguments)
            answer.calls[-1].whole = True
        elif isinstance(part, CallBroken):
            del answer.calls[-1]
    if answer.calls and not answer.calls[-1].whole:
        answer.calls[-1].arguments = "".join(arguments)
    answer.content = "".join(texts)
    return answer
