"""Which of two ways a prompt's prefill goes: on the decode worker itself, or on a prefill worker.

Exists because splitting the stages pays for some requests and costs others: the better way depends on how
long the prompt is, who has it cached, who has work waiting, how fast the KV moves, and whom the prefill would
delay. Both ways are predicted in milliseconds, term by term, and the shorter is taken: so no request waits
for a handoff that loses. It must not know how workers are found nor where their facts come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from tokenmill.decide.perf.step_time import StepTimeModel, prompt_ms

LOCAL = "local"
REMOTE = "remote"
AUTO = "auto"

DEFAULT_CHUNK_TOKENS = 512
"""Prompt tokens in a step of a worker that does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathWeights:
    """What the terms are worth against each other. All are milliseconds before they are weighted."""

    first_token: float = 1.0
    """The unit: a millisecond by which this request's first token comes later."""

    later_tokens: float = 0.3
    """A millisecond by which a later token comes later, be it this request's or another's. The wait for the
    first token is felt whole; streams are faster than people read, so that a reader catches up with most
    pauses unseen. At 1 the mean time of whole requests is least, but first tokens wait in a full prefill
    worker's queue for the sake of many streams; from 0.2 to 0.5 the figures hardly differ."""

    handoff_ms: float = 1.0
    """What a handoff takes besides moving the cache: the offer travels to the frontend and on."""

    mean_output_tokens: float = 256.0
    """How long a sequence decodes before it gives back its room, where nothing is known of it."""


class Side(NamedTuple):
    """One worker as a prediction for one request sees it.

    ``queue_tokens``: prompt tokens to compute before this request's. ``cached_tokens``: of this prompt's
    head. ``decoding`` sequences, which read ``decode_context`` tokens between them. ``chunk_tokens``: most
    prompt tokens in one step. ``free_tokens``: KV room. ``incoming_tokens``: of others, whose KV it still has
    to fetch.
    """

    times: StepTimeModel
    queue_tokens: float = 0
    cached_tokens: float = 0
    decoding: float = 0
    decode_context: float = 0
    chunk_tokens: float = DEFAULT_CHUNK_TOKENS
    free_tokens: float = math.inf
    incoming_tokens: float = 0


class Path(NamedTuple):
    """One way with its predicted cost. ``terms``: milliseconds by name, weighted; ``total_ms`` is their sum.

    ``key``: the caller's name for the way.
    """

    kind: str
    key: object
    terms: dict[str, float]
    total_ms: float


def local_path(prompt_tokens: int, decode: Side, weights: PathWeights, key: object = None) -> Path:
    """Predict the prefill on the decode worker itself, in chunks between its decodes."""
    queue, own = _prefill_ms(prompt_tokens, decode)
    first, later = weights.first_token, weights.later_tokens
    terms = {
        "step": first * _decode_step_ms(decode) / 2,
        "queue": first * queue.time_ms,
        "prefill": first * own.time_ms,
        "room": first * _room_ms(prompt_tokens, decode, weights),
        "slowed decodes": later * decode.decoding * own.slowing_ms,
    }
    return Path(LOCAL, key, terms, sum(terms.values()))


def remote_path(
    prompt_tokens: int,
    prefill: Side,
    decode: Side,
    transfer_ms: Callable[[float], float],
    weights: PathWeights,
    *,
    early_handoff: bool,
    key: object = None,
) -> Path:
    """Predict the prefill on a prefill worker, and the KV that the decode worker lacks fetched from there.

    ``transfer_ms``: time to fetch so many tokens. With ``early_handoff`` it fetches chunks while later ones
    are still being computed, so that only the last chunk, or what a slow transfer is behind, comes on top.
    Lack of room at the decode worker delays what comes after the first token, and so overlaps with the
    prefill as well.
    """
    queue, own = _prefill_ms(prompt_tokens, prefill)
    lacking = max(0.0, prompt_tokens - decode.cached_tokens)
    computed_ms = queue.time_ms + own.time_ms
    last = lacking
    if early_handoff:
        last = max(0.0, min(lacking, prefill.chunk_tokens, prompt_tokens - prefill.cached_tokens))
    # What others still fetch goes before this prompt, whoever computes it.
    behind_ms = transfer_ms(decode.incoming_tokens + lacking) - computed_ms
    moving_ms = max(transfer_ms(last), behind_ms)
    room_ms = _room_ms(prompt_tokens, decode, weights)
    first, later = weights.first_token, weights.later_tokens
    terms = {
        "step": first * _decode_step_ms(prefill) / 2 + later * _decode_step_ms(decode) / 2,
        "queue": first * queue.time_ms,
        "prefill": first * own.time_ms,
        "transfer": later * (weights.handoff_ms + moving_ms),
        "room": later * max(0.0, room_ms - computed_ms),
        "slowed decodes": later * prefill.decoding * own.slowing_ms,
    }
    return Path(REMOTE, key, terms, sum(terms.values()))


def better(paths: Iterable[Path], mode: str = AUTO) -> Path:
    """Return the shortest of ``paths`` that ``mode`` (auto, local or remote) allows; if it allows none, of
    all.

    Of equal ones the local way, which needs fewer to go well, then the first given. Raises ValueError for
    none.
    """
    known = list(paths)
    allowed = [path for path in known if mode in (AUTO, path.kind)] or known
    return min(allowed, key=lambda path: (path.total_ms, path.kind != LOCAL))


class _Compute(NamedTuple):
    """``time_ms``: of some steps. ``slowing_ms``: of it, what each decoding sequence waits longer."""

    time_ms: float
    slowing_ms: float


def _prefill_ms(prompt_tokens: int, side: Side) -> tuple[_Compute, _Compute]:
    """Return what comes before the prompt, and the prompt: a queue's last step may hold the prompt's
    start."""
    new = max(1.0, prompt_tokens - side.cached_tokens)
    queue_ms, queue_steps = _steps_ms(side, side.queue_tokens, 0.0)
    context = (new * (prompt_tokens - new / 2)) if new else 0.0
    both_ms, both_steps = _steps_ms(side, side.queue_tokens + new, context)
    own_ms = both_ms - queue_ms
    slowing_ms = 0.0
    if side.decoding:
        slowing_ms = max(0.0, own_ms - (both_steps - queue_steps) * _decode_step_ms(side))
    return _Compute(queue_ms, 0.0), _Compute(own_ms, slowing_ms)


def _steps_ms(side: Side, tokens: float, context: float) -> tuple[float, int]:
    """Return how long ``tokens`` prompt tokens take beside the decodes, and in how many steps."""
    if tokens <= 0:
        return 0.0, 0
    steps = math.ceil(tokens / side.chunk_tokens)
    attended = context / tokens
    spent_ms = prompt_ms(
        side.times,
        tokens,
        max(0.0, attended - tokens / 2),
        chunk_tokens=side.chunk_tokens,
        sequences=side.decoding,
        decode_context=side.decode_context,
    )
    return spent_ms, steps


def _decode_step_ms(side: Side) -> float:
    return side.times.decode_ms(side.decoding, side.decode_context) if side.decoding else 0.0


def _room_ms(prompt_tokens: int, side: Side, weights: PathWeights) -> float:
    """Return how long until the worker has room for the prompt: each step, sequences that hold
    ``decode_context`` between them end at a rate of one in ``mean_output_tokens``."""
    short = prompt_tokens - side.cached_tokens - side.free_tokens
    if short <= 0 or not side.decoding or side.decode_context <= 0:
        return 0.0
    released_a_step = side.decode_context / weights.mean_output_tokens
    return short / released_a_step * _decode_step_ms(side)
