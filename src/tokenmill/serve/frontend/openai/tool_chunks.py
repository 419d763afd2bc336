"""Answers with tool calls in OpenAI's JSON: streamed and whole.

Exists apart so that chunks of plain text stay as cheap as they are. It must not know formats of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.frontend.answers import Collected
from tokenmill.serve.frontend.openai.chunks import ChatChunks
from tokenmill.serve.text.tool_calls.answer import joined
from tokenmill.serve.text.tool_calls.parts import (
    ArgumentsMade,
    CallBegan,
    CallBroken,
    CallEnded,
    Content,
    Part,
    ToolCallParser,
)

_CALLED = "tool_calls"


class _Choice:
    """What one choice has told so far."""

    def __init__(self, parser: ToolCallParser) -> None:
        self.parser = parser
        self.whole = 0
        self._begun = 0

    def deltas(self, parts: Iterable[Part]) -> list[dict[str, Any]]:
        """Return OpenAI's deltas for the next parts. What was told of a call that turned out to be broken
        cannot be taken back; all of its text follows as content."""
        found: list[dict[str, Any]] = []
        for part in parts:
            if isinstance(part, Content | CallBroken):
                found.append({"content": part.text})
            elif isinstance(part, CallBegan):
                self._begun += 1
                function = {"name": part.name, "arguments": ""}
                found.append(self._call(id=part.call_id, type="function", function=function))
            elif isinstance(part, ArgumentsMade):
                found.append(self._call(function={"arguments": part.text}))
            elif isinstance(part, CallEnded):
                self.whole += 1
        return found

    def _call(self, **fields: Any) -> dict[str, Any]:
        return {"tool_calls": [{"index": self._begun - 1, **fields}]}


class ToolChunks(ChatChunks):
    """Chunks of a chat whose text is read by a parser, one for each choice."""

    def __init__(
        self, *arguments: Any, parser: Callable[[], ToolCallParser], choices: int, **options: Any
    ) -> None:
        super().__init__(*arguments, choices=choices, **options)
        self.plain = False
        self._detailed = self._top is not None or self._prompt_token_ids is not None
        self._choices = [_Choice(parser()) for _ in range(choices)]

    def delta(
        self, index: int, text: str, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> bytes:
        """Return the chunks for new tokens; nothing where there is nothing to tell yet."""
        choice = self._choices[index]
        deltas = choice.deltas(choice.parser.push(text)) if text else []
        if self._detailed and tokens:
            first = deltas.pop(0) if deltas else {}
            return self._told(index, first, tokens, logprobs) + self._all(index, deltas)
        return self._all(index, deltas)

    def closing(self, index: int, reason: str) -> bytes:
        """Return what was held back, and the finish reason."""
        choice = self._choices[index]
        last = self._all(index, choice.deltas(choice.parser.finish(cut=reason == "length")))
        return last + super().closing(index, _CALLED if choice.whole and reason == "stop" else reason)

    def _all(self, index: int, deltas: Iterable[dict[str, Any]]) -> bytes:
        return b"".join([self._told(index, delta, (), None) for delta in deltas])


def whole_message(parser: ToolCallParser, choice: Collected) -> tuple[dict[str, Any], str]:
    """Return a choice's message, and its finish reason."""
    answer = joined([*parser.push(choice.text), *parser.finish(cut=choice.reason == "length")])
    message: dict[str, Any] = {"role": "assistant", "content": answer.content, "refusal": None}
    if not answer.calls:
        return message, choice.reason
    message["content"] = answer.content or None
    message["tool_calls"] = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in answer.calls
    ]
    return message, _CALLED if answer.calls[0].whole and choice.reason == "stop" else choice.reason
