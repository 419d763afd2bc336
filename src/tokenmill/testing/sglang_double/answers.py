"""From a sequence's state to SGLang's answers. No I/O."""

from __future__ import annotations

import msgspec

from tokenmill.testing.sglang_double.contract import Asked
from tokenmill.testing.sglang_double.scheduler import Ranking, Sequence
from tokenmill.testing.sglang_double.tokens import ranked

_UNLIKELY = -20.0


def piece(sequence: Sequence, sent: int, vocab_size: int, *, incremental: bool) -> bytes:
    """Return one event, or a whole answer. ``sent``: tokens that were told before."""
    start = sent if incremental else 0
    asked = sequence.asked
    made = len(sequence.output)
    meta: dict[str, object] = {
        "id": asked.rid,
        "finish_reason": sequence.finish,
        "prompt_tokens": len(asked.input_ids),
        "weight_version": "default",
        "num_retractions": sequence.retractions,
        "reasoning_tokens": 0,
        "completion_tokens": made,
        "cached_tokens": sequence.cached_tokens,
    }
    if asked.return_logprob:
        meta |= _logprobs(sequence, start, vocab_size)
    return msgspec.json.encode({"text": "", "output_ids": sequence.output[start:], "meta_info": meta})


def _logprobs(sequence: Sequence, start: int, vocab_size: int) -> dict[str, object]:
    asked = sequence.asked
    meta: dict[str, object] = {
        "input_token_logprobs": _of_prompt(asked, vocab_size),
        "output_token_logprobs": [
            _entry(token, ranking)
            for token, ranking in zip(sequence.output[start:], sequence.rankings[start:], strict=True)
        ],
        "output_token_logprobs_length": len(sequence.output),
    }
    if asked.top_logprobs_num:
        most = asked.top_logprobs_num
        meta["input_top_logprobs"] = _tops_of_prompt(asked, vocab_size, most)
        meta["output_top_logprobs"] = [_top(ranking, most) for ranking in sequence.rankings[start:]]
    return meta


def _of_prompt(asked: Asked, vocab_size: int) -> list[object]:
    if asked.logprob_start_len < 0:
        return []
    ids = asked.input_ids
    scored = [_entry(ids[at], ranked(ids[:at], vocab_size)) for at in range(1, len(ids))]
    return [(None, ids[0], None), *scored]


def _tops_of_prompt(asked: Asked, vocab_size: int, most: int) -> list[object]:
    if asked.logprob_start_len < 0:
        return []
    ids = asked.input_ids
    return [None, *(_top(ranked(ids[:at], vocab_size), most) for at in range(1, len(ids)))]


def _entry(token: int, ranking: Ranking) -> tuple[float, int, None]:
    return dict(ranking).get(token, _UNLIKELY), token, None


def _top(ranking: Ranking, most: int) -> list[tuple[float, int, None]]:
    return [(logprob, token, None) for token, logprob in ranking[:most]]
