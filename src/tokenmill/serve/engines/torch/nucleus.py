"""Cutting a distribution down to its likely part: top-k, min-p and top-p, in that effect.

min-p and top-k look at the whole distribution; top-p is a share of what those leave. A cut is a threshold on
the probability, so tokens of equal probability stay or go together, whatever order a sort puts them in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tokenmill.protocol.generate import Sampling

_FIRST_LOOK = 1024
"""So many likeliest tokens nearly always hold the cut; sorting a whole vocabulary takes ten times as long."""


def truncate(probabilities: torch.Tensor, params: Sequence[Sampling]) -> torch.Tensor:
    """Return float32 [rows, vocab] with zeros for what each row's parameters exclude, not rescaled."""
    vocab_size = probabilities.shape[-1]
    cut = [row for row, p in enumerate(params) if _cuts(p, vocab_size)]
    if not cut:
        return probabilities
    result = probabilities.clone()
    look = min(vocab_size, max(_FIRST_LOOK, *(params[row].top_k for row in cut)))
    best = probabilities[cut].topk(look, dim=-1).values
    for index, row in enumerate(cut):
        threshold = _threshold(best[index], params[row], whole=look == vocab_size)
        if threshold is None:
            everything = probabilities[row].sort(descending=True).values
            threshold = _threshold(everything, params[row], whole=True)
        assert threshold is not None  # the whole vocabulary holds any cut
        result[row].masked_fill_(probabilities[row] < threshold, 0.0)
    return result


def _cuts(params: Sampling, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size or params.top_p < 1 or params.min_p > 0


def _threshold(best: torch.Tensor, params: Sampling, *, whole: bool) -> torch.Tensor | None:
    """Return the least probability that stays, given the likeliest ones in falling order; None if the cut may
    lie beyond them."""
    kept = best
    limited = whole
    if 0 < params.top_k <= len(best):
        # Ties with the k-th stay too.
        kept = kept[kept >= kept[params.top_k - 1]]
        limited = limited or len(kept) < len(best)
    if params.min_p > 0:
        kept = kept[kept >= kept[0] * params.min_p]
        limited = limited or len(kept) < len(best)
    if params.top_p < 1:
        if not limited and params.min_p > 0:
            return None
        mass = kept.sum() if limited else torch.ones((), device=best.device)
        before = kept.cumsum(dim=0) - kept
        kept = kept[: max(1, int((before < params.top_p * mass).sum()))]
        limited = limited or len(kept) < len(best)
    return kept[-1] if limited else None
