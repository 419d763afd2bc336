"""Which token comes next: made up, but dependent on every token before it and on the sampling. No I/O."""

from __future__ import annotations

from array import array

from xxhash import xxh3_64_intdigest

from tokenmill.testing.sglang_double.contract import Params

RANKED = 20
"""How many tokens are ranked at each position."""

_ENDS_EVERY = 61
"""One position in so many ends the text, where that is allowed."""


def ranked(ids: list[int], vocab_size: int) -> list[tuple[int, float]]:
    """Return the likeliest tokens after ``ids`` and their log probabilities, best first."""
    seed = xxh3_64_intdigest(array("q", ids).tobytes())
    step = 1 + seed % 7
    first = 8 + seed % (vocab_size - 8)
    return [(8 + (first - 8 + rank * step) % (vocab_size - 8), -0.25 - 0.5 * rank) for rank in range(RANKED)]


def next_token(
    ids: list[int], made: int, params: Params, vocab_size: int, eos_token_id: int
) -> tuple[int, list[tuple[int, float]]]:
    """Return the next token and the ranking it was taken from. ``made``: tokens made so far.

    With a temperature the draw depends on (seed, position) alone.
    """
    scores = dict(ranked(ids, vocab_size))
    for token, bias in params.logit_bias.items():
        scores[int(token)] = scores.get(int(token), -12.0) + bias
    if eos_token_id >= 0 and xxh3_64_intdigest(array("q", ids).tobytes(), 1) % _ENDS_EVERY == 0:
        scores[eos_token_id] = -0.01
    ends = {*params.stop_token_ids, *([] if params.ignore_eos else [eos_token_id])}
    if made < params.min_new_tokens:
        scores = {token: score for token, score in scores.items() if token not in ends}
    best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    allowed = best[: params.top_k] if params.top_k > 0 else best[:8]
    if params.temperature < 1e-6:
        return best[0][0], best
    draw = xxh3_64_intdigest(array("q", [params.sampling_seed, len(ids)]).tobytes())
    return allowed[draw % len(allowed)][0], best


def is_end(token: int, made: int, params: Params, eos_token_id: int) -> bool:
    """Whether ``token``, the ``made``-th one, ends the text."""
    if made < params.min_new_tokens:
        return False
    return token in params.stop_token_ids or (token == eos_token_id and not params.ignore_eos)
