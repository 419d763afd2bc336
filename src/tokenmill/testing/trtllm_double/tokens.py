"""The double's model: each token follows from all tokens before it and from the sampling parameters. No
I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from xxhash import xxh3_64_intdigest

FIRST = 8
"""Lowest token that is made."""

_SAMPLING = (
    *("seed", "temperature", "top_k", "top_p", "min_p", "presence_penalty", "frequency_penalty"),
    "repetition_penalty",
)
_SURE = 50.0
"""A bias from here on decides."""


def after(state: int, tokens: Iterable[int]) -> int:
    """Return the state after more tokens: it stands for a KV cache that has read all of them. Starts at 0."""
    for token in tokens:
        state = xxh3_64_intdigest(token.to_bytes(4, "little"), state)
    return state


def sampling_key(fields: Mapping[str, object]) -> int:
    """Return what the parameters add; greedy sampling adds nothing but its penalties."""
    names = [name for name in _SAMPLING if fields.get(name) is not None]
    if fields.get("temperature") == 0:
        names = [name for name in names if name.endswith("penalty")]
    chosen = {name: float(str(fields[name])) for name in names}
    return xxh3_64_intdigest(msgspec.json.encode(sorted(chosen.items())))


def next_token(state: int, key: int, vocab: int, biases: Mapping[str, float]) -> int:
    """Return the next token."""
    sure = [int(name) for name, bias in biases.items() if bias >= _SURE]
    if sure:
        return sure[0]
    return FIRST + xxh3_64_intdigest(key.to_bytes(8, "little"), state) % (vocab - FIRST)


def text_of(token: int) -> str:
    """Return what stands for a token where text is asked for."""
    return f" t{token}"


def logprob_of(state: int) -> float:
    """Return the log probability of the token that follows."""
    return -(1 + state % 997) / 1000
