"""From logits to tokens, with a draw that depends on (seed, output position) alone.

A batch's other rows, chunking, preemption and the worker must not change a token: the one uniform number of
a draw is a hash, and it is looked up in the cumulative distribution in token order, which a last-bit
difference in a logit moves by no more than that difference (a sorted order could flip). Penalties follow
OpenAI's and vLLM's meaning. Reads a sequence's tokens; keeps only what can be derived from them.
"""

from __future__ import annotations

import struct

import msgspec
import torch
import xxhash

from tokenmill.decide.batching.types import Chunk, Sequence
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.engines.base import StepFailed
from tokenmill.serve.engines.torch.nucleus import truncate

_GREEDY_BELOW = 1e-5
"""A temperature that divides logits into overflow means greedy."""

_LEAST_LOGPROB = -9999.0
"""Reported for a probability of zero: JSON has no infinity."""


def uniform(seed: int, position: int) -> float:
    """Return the draw for one output position: in [0, 1), 53 random bits."""
    key = struct.pack("<Qq", seed & 0xFFFF_FFFF_FFFF_FFFF, position)
    return (xxhash.xxh3_64_intdigest(key) >> 11) * 2.0**-53


class _State:
    """What one request's sampling needs. ``seen`` [vocab] bool: tokens of prompt or output; ``counts``
    [vocab]: how often each is in the output; both cover the first ``counted`` tokens of the sequence."""

    __slots__ = ("biased", "counted", "counts", "greedy", "masked", "penalizes", "plain", "sampling", "seen")

    def __init__(self, sampling: Sampling, eos: list[int], vocab_size: int) -> None:
        self.sampling = sampling
        self.greedy = sampling.temperature < _GREEDY_BELOW
        self.biased = sorted((i, b) for i, b in sampling.logit_bias.items() if 0 <= i < vocab_size)
        stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else eos)}
        self.masked = sorted(i for i in stops if 0 <= i < vocab_size) if sampling.min_tokens > 0 else []
        self.penalizes = (
            sampling.presence_penalty != 0
            or sampling.frequency_penalty != 0
            or sampling.repetition_penalty != 1
        )
        self.plain = not (self.biased or self.masked or self.penalizes or sampling.logprobs is not None)
        self.counted = 0
        self.seen = torch.empty(0)
        self.counts = torch.empty(0)

    def count(self, sequence: Sequence, like: torch.Tensor) -> None:
        """Take in tokens that came since the last step; start over if they are fewer."""
        tokens, prompt_len = sequence.tokens, sequence.prompt_len
        if self.counted == 0 or self.counted > len(tokens):
            self.counted = 0
            self.seen = torch.zeros_like(like, dtype=torch.bool)
            self.counts = torch.zeros_like(like)
        new = torch.tensor(tokens[self.counted :], dtype=torch.int64, device=like.device)
        self.seen[new] = True
        output = new[max(0, prompt_len - self.counted) :]
        self.counts.scatter_add_(0, output, torch.ones_like(output, dtype=like.dtype))
        self.counted = len(tokens)

    def adjust(self, row: torch.Tensor, sequence: Sequence) -> None:
        """Apply bias, the ban on early ends, and penalties to logits [vocab], in place."""
        sampling = self.sampling
        if self.biased:
            ids = torch.tensor([i for i, _ in self.biased], device=row.device)
            row[ids] += torch.tensor([b for _, b in self.biased], device=row.device)
        if self.masked and sequence.output_len < sampling.min_tokens:
            row[torch.tensor(self.masked, device=row.device)] = -torch.inf
        if self.penalizes:
            self.count(sequence, row)
            if sampling.repetition_penalty != 1:
                penalty = sampling.repetition_penalty
                row.copy_(torch.where(self.seen, torch.where(row > 0, row / penalty, row * penalty), row))
            row.sub_(self.counts * sampling.frequency_penalty)
            row.sub_((self.counts > 0) * sampling.presence_penalty)


class Sampled(msgspec.Struct, frozen=True, eq=False):
    """One token a chunk, and log probabilities where asked."""

    tokens: list[int]
    logprobs: dict[RequestId, TokenLogprobs]


class Sampler:
    """Chooses tokens for the requests that were admitted."""

    def __init__(self, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._vocab_size = vocab_size
        self._eos = eos_token_ids
        self._states: dict[RequestId, _State] = {}

    def admit(self, request_id: RequestId, sampling: Sampling) -> None:
        """Keep what sampling needs until ``retire``."""
        self._states[request_id] = _State(sampling, self._eos, self._vocab_size)

    def retire(self, request_id: RequestId) -> None:
        """Forget a request; unknown ids are ignored."""
        self._states.pop(request_id, None)

    def prompt_logprobs(self, request_id: RequestId) -> int | None:
        """How many alternatives a request wants beside its prompt's tokens; None: no log probabilities."""
        return self._states[request_id].sampling.prompt_logprobs

    def sample(self, chunks: list[Chunk], logits: torch.Tensor) -> Sampled:
        """Choose one token a chunk. ``logits``: float32 [len(chunks), vocab], overwritten.

        Raises StepFailed that names the requests whose logits are not finite.
        """
        if not chunks:
            return Sampled([], {})
        best, greedy = logits.max(dim=-1)
        if not bool(best.isfinite().all()):
            self._refuse(chunks, best)
        states = [self._states[chunk.sequence.request.request_id] for chunk in chunks]
        if all(state.plain and state.greedy for state in states):
            return Sampled(greedy.tolist(), {})
        for row, (chunk, state) in enumerate(zip(chunks, states, strict=True)):
            if not state.plain:
                state.adjust(logits[row], chunk.sequence)
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        drawn = [row for row, state in enumerate(states) if not state.greedy]
        if drawn:
            for row, token in zip(drawn, self._draw(drawn, chunks, states, logits), strict=True):
                tokens[row] = token
        wanted = [row for row, state in enumerate(states) if state.sampling.logprobs is not None]
        scores: dict[RequestId, TokenLogprobs] = {}
        if wanted:
            alternatives = [states[row].sampling.logprobs or 0 for row in wanted]
            scored = score(logits[wanted], [tokens[row] for row in wanted], alternatives)
            ids = [chunks[row].sequence.request.request_id for row in wanted]
            scores = dict(zip(ids, scored, strict=True))
        return Sampled(tokens, scores)

    def _draw(
        self, rows: list[int], chunks: list[Chunk], states: list[_State], logits: torch.Tensor
    ) -> list[int]:
        """Draw a token for each of ``rows``."""
        params = [states[row].sampling for row in rows]
        picked = logits if len(rows) == len(chunks) else logits[rows]
        temperatures = torch.tensor([p.temperature for p in params], device=logits.device)
        probabilities = (picked / temperatures.unsqueeze(1)).softmax(dim=-1)
        probabilities = truncate(probabilities, params)
        cumulative = probabilities.double().cumsum(dim=-1)
        draws = [
            uniform(p.seed, chunks[row].sequence.output_len) for row, p in zip(rows, params, strict=True)
        ]
        totals = cumulative[:, -1:]
        aims = torch.tensor(draws, dtype=torch.float64, device=logits.device).unsqueeze(1) * totals
        # Below the total even after rounding, so that the token found has a probability above zero.
        aims = torch.minimum(aims, torch.nextafter(totals, torch.zeros_like(totals)))
        found: list[int] = torch.searchsorted(cumulative, aims, right=True).squeeze(1).tolist()
        return found

    def _refuse(self, chunks: list[Chunk], best: torch.Tensor) -> None:
        finite = best.isfinite().tolist()
        bad = [c.sequence.request.request_id for c, ok in zip(chunks, finite, strict=True) if not ok]
        raise StepFailed(f"the model gave logits that are not numbers for {', '.join(bad)}", bad)


def score(logits: torch.Tensor, tokens: list[int], alternatives: list[int]) -> list[TokenLogprobs]:
    """Return the log probability of one token a row of float32 [rows, vocab], and of that many best ones."""
    logprobs = logits.log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device).unsqueeze(1)).squeeze(1)
    most = min(max(alternatives), logits.shape[-1])
    values, ids = logprobs.topk(most, dim=-1)
    return [
        TokenLogprobs(
            max(own, _LEAST_LOGPROB),
            [(i, max(v, _LEAST_LOGPROB)) for i, v in zip(row_ids[:n], row_values[:n], strict=True)],
        )
        for own, row_ids, row_values, n in zip(
            chosen.tolist(), ids.tolist(), values.tolist(), alternatives, strict=True
        )
    ]
