"""What a request used, in OpenAI's JSON. It must not know where the numbers come from."""

from __future__ import annotations

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """``cached_tokens``: prompt tokens whose KV was found in a prefix cache."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Token counts of a whole request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> Usage:
        """Return the usage with its sum."""
        total = prompt_tokens + completion_tokens
        return cls(prompt_tokens, completion_tokens, total, PromptTokensDetails(cached_tokens))
