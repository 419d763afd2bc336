"""Log probabilities in OpenAI's two shapes: one for chats, one for completions.

Exists apart because few requests ask for them. It must not know streams or workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from tokenmill.protocol.items import TokenLogprobs

_LOWEST = -9999.0
"""JSON knows no infinity; OpenAI sends this for "never"."""


class TokenNames(Protocol):
    """What must be known of a tokenizer to show tokens."""

    def token_text(self, token: int, /) -> str:
        """Return the token's text."""
        ...

    def token_bytes(self, token: int, /) -> bytes:
        """Return the token's bytes."""
        ...


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)


def chat_logprobs(
    names: TokenNames, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs], top: int
) -> dict[str, Any]:
    """Return the ``logprobs`` object of a chat choice, with ``top`` alternatives a token."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": names.token_text(token),
            "logprob": _finite(logprob),
            "bytes": list(names.token_bytes(token)),
        }

    content = [
        {
            **entry(token, scored.logprob),
            "top_logprobs": [entry(other, logprob) for other, logprob in scored.top[:top]],
        }
        for token, scored in zip(tokens, logprobs, strict=False)
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """The ``logprobs`` object of one completion choice; ``text_offset`` goes on from call to call."""

    def __init__(self, names: TokenNames, top: int) -> None:
        self._names = names
        self._top = top
        self._offset = 0

    def take(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """Return the object for the next tokens. None: nothing is known of a token (a prompt's first)."""
        texts = [self._names.token_text(token) for token in tokens]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        scores = [_finite(scored.logprob) if scored else None for scored in logprobs]
        tops = [
            self._alternatives(token, text, scored)
            for token, text, scored in zip(tokens, texts, logprobs, strict=False)
        ]
        return {"tokens": texts, "token_logprobs": scores, "top_logprobs": tops, "text_offset": offsets}

    def _alternatives(self, token: int, text: str, scored: TokenLogprobs | None) -> dict[str, float] | None:
        if scored is None:
            return None
        found: dict[str, float] = {}
        for other, logprob in scored.top[: self._top]:
            name = text if other == token else self._names.token_text(other)
            found.setdefault(name, _finite(logprob))
        found.setdefault(text, _finite(scored.logprob))
        return found
