"""Worker -> frontend: everything a worker says on a request's stream.

A stream of a ``generate`` request carries ``Offered`` (prefill role only, at most once),
``HandoffLost`` (prefill and decode role, at most once), any number of ``Tokens``, and ends with exactly one
``Finished`` or ``Failed``.
A stream of ``subscribe`` carries ``Load``, one of ``subscribe_kv`` ``KvEvents``, until it is cancelled.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.kv_events import KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.protocol.text import TextFinished, TextPieces


class FinishReason(StrEnum):
    """Why a stream ended well."""

    STOP = "stop"
    """An end-of-sequence token or one of ``stop_token_ids``."""
    LENGTH = "length"
    """``max_tokens`` or the model's context length."""
    HANDOFF = "handoff"
    """Prefill is done; the decode worker goes on."""
    CANCELLED = "cancelled"
    """The frontend asked for it."""


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log probabilities at one position, natural log, after penalties and before temperature."""

    logprob: float
    """Of the chosen token."""
    top: list[tuple[int, float]] = []
    """The most likely (token id, log probability), best first."""


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """New tokens. ``index`` is the output position of the first: a reader that has seen n tokens
    expects n, drops what lies below and treats what lies above as a lost token."""

    index: int
    tokens: list[int]
    logprobs: list[TokenLogprobs] | None = None


class Finished(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """The last item, with the last tokens if there are any.

    ``tokens`` includes an end-of-sequence or stop token that ended the stream; ``stop_token`` names
    it then, so that the frontend can leave it out of the text. ``cached_tokens`` counts prompt
    tokens whose KV was found in this worker's prefix cache.
    """

    index: int
    tokens: list[int]
    reason: FinishReason
    stop_token: int | None = None
    cached_tokens: int = 0
    logprobs: list[TokenLogprobs] | None = None


class Offered(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The KV cache of this prompt can be fetched as ``handoff`` says."""

    handoff: Handoff
    cached_tokens: int = 0


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """The request ended badly. ``retryable``: another worker may well succeed."""

    status: int
    code: str
    message: str
    retryable: bool = False


class Load(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """This worker's load now."""

    metrics: StepMetrics
    draining: bool = False


class PromptScored(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Log probabilities of the prompt's tokens, asked for by ``prompt_logprobs``; sent before the
    first token. One entry a prompt token; the first is None, having nothing before it."""

    logprobs: list[TokenLogprobs | None]


class HandoffLost(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """A decode worker could not fetch the cache that a handoff promised, and computes the prompt itself; or,
    where its engine cannot, ``Failed`` follows and another pair is asked.

    ``reason``: one of a few words, for counting; ``message``: what happened, for a person.
    """

    reason: str
    message: str


Item = (
    Tokens
    | Finished
    | Offered
    | Failed
    | Load
    | PromptScored
    | KvEvents
    | HandoffLost
    | TextPieces
    | TextFinished
)


def join_tokens(earlier: Tokens, later: Item) -> Tokens | Finished | None:
    """Return one item that says what both do in turn, or None where there is none."""
    if not isinstance(later, Tokens | Finished):
        return None
    if later.tokens and earlier.index + len(earlier.tokens) != later.index:
        return None
    if (earlier.logprobs is None) != (later.logprobs is None) and later.tokens:
        return None
    logprobs = None if earlier.logprobs is None else [*earlier.logprobs, *(later.logprobs or [])]
    tokens = [*earlier.tokens, *later.tokens]
    if isinstance(later, Tokens):
        return Tokens(earlier.index, tokens, logprobs)
    return Finished(earlier.index, tokens, later.reason, later.stop_token, later.cached_tokens, logprobs)
