"""Draws that depend on (seed, position) alone; penalties, bans and log probabilities by their definitions."""

import math
from collections import Counter

import pytest
import torch

from tokenmill.decide.batching.types import Chunk, Sequence, SequenceRequest
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.engines.base import StepFailed
from tokenmill.serve.engines.torch.nucleus import truncate
from tokenmill.serve.engines.torch.sampling import Sampler, uniform

VOCAB = 50
EOS = 3


def chunk(name: str, prompt: list[int], output: list[int]) -> Chunk:
    request = SequenceRequest(request_id=RequestId(name), prompt=prompt, max_tokens=99)
    tokens = [*prompt, *output]
    sequence = Sequence(request=request, tokens=tokens, prompt_len=len(prompt), arrival=0.0)
    return Chunk(sequence, len(tokens) - 1, 1, samples=True)


def logits_of(seed: int, rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def one(sampling: Sampling, logits: torch.Tensor, prompt=(5, 6), output=()):
    sampler = Sampler(VOCAB, [EOS])
    sampler.admit(RequestId("a"), sampling)
    return sampler.sample([chunk("a", list(prompt), list(output))], logits.clone().view(1, -1))


def sampling(**fields) -> Sampling:
    return Sampling(max_tokens=99, **fields)


def test_uniform_is_a_fixed_function_of_seed_and_position():
    draws = [uniform(seed, i) for seed in (0, 1, -1, 2**63, 12345) for i in range(400)]
    assert len(set(draws)) == len(draws)
    assert all(0 <= u < 1 for u in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.02
    assert uniform(7, 3) == uniform(7, 3)


def test_draws_follow_the_distribution():
    logits = logits_of(1)
    expected = (logits[0] / 0.7).softmax(-1)
    draws = 4000
    counts = Counter(one(sampling(temperature=0.7, seed=seed), logits).tokens[0] for seed in range(draws))
    for token in range(VOCAB):
        p = float(expected[token])
        assert abs(counts[token] / draws - p) < 5 * math.sqrt(p * (1 - p) / draws) + 1e-3


def test_a_draw_is_the_same_in_any_batch():
    params = [
        sampling(temperature=1.0, seed=1),
        sampling(temperature=0.0),
        sampling(temperature=1.3, seed=2, top_k=9),
        sampling(temperature=0.9, seed=3, top_p=0.7, presence_penalty=0.5),
        sampling(temperature=0.9, seed=4, min_p=0.05, logprobs=2),
        sampling(temperature=1e-9, seed=5),
    ]
    outputs = [[], [1], [2, 3], [4, 5, 6], [7], [8, 9]]
    logits = logits_of(2, rows=len(params))
    alone = [one(p, logits[i], output=outputs[i]).tokens[0] for i, p in enumerate(params)]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4], [2, 0]):
        sampler = Sampler(VOCAB, [EOS])
        for i in order:
            sampler.admit(RequestId(str(i)), params[i])
        chunks = [chunk(str(i), [5, 6], outputs[i]) for i in order]
        got = sampler.sample(chunks, logits[order].clone()).tokens
        assert got == [alone[i] for i in order]


def test_another_position_or_seed_gives_another_draw():
    flat = torch.zeros(1, VOCAB)
    by_position = {one(sampling(seed=1), flat, output=[9] * n).tokens[0] for n in range(20)}
    by_seed = {one(sampling(seed=n), flat).tokens[0] for n in range(20)}
    assert min(len(by_position), len(by_seed)) > 8


def test_a_tiny_temperature_is_greedy():
    logits = logits_of(3)
    assert one(sampling(temperature=1e-8, seed=4), logits).tokens == [int(logits.argmax())]


@pytest.mark.parametrize("vocab", [40, 5000])
@pytest.mark.parametrize(
    "cut",
    [
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 4999},
        {"top_p": 0.5},
        {"top_p": 0.999},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"min_p": 1e-4, "top_p": 0.9},
        {"top_k": 12, "top_p": 0.6, "min_p": 0.1},
    ],
    ids=str,
)
def test_truncation_by_its_definition(vocab, cut):
    generator = torch.Generator().manual_seed(vocab)
    probabilities = (torch.randn(3, vocab, generator=generator) * 2).softmax(-1)
    params = [sampling(), sampling(**cut), sampling(**cut)]
    got = truncate(probabilities, params)
    assert torch.equal(got[0], probabilities[0])
    for row in (1, 2):
        order = sorted(range(vocab), key=lambda i: -float(probabilities[row, i]))
        kept = order[: cut.get("top_k", vocab)]
        least = cut.get("min_p", 0.0) * float(probabilities[row, order[0]])
        kept = [i for i in kept if float(probabilities[row, i]) >= least]
        mass, total, nucleus = 0.0, sum(float(probabilities[row, i]) for i in kept), []
        for i in kept:
            if nucleus and mass >= cut.get("top_p", 1.0) * total:
                break
            nucleus.append(i)
            mass += float(probabilities[row, i])
        alive = set(got[row].nonzero().flatten().tolist())
        # Sums in another order may move the edge by one token of a long, flat tail.
        assert len(alive ^ set(nucleus)) <= (2 if cut.get("top_p") == 0.999 else 0)


def test_penalties_over_output_and_repetition_over_all():
    logits = logits_of(4)
    prompt, output = [5, 6, 7], [7, 8, 8, 9]
    params = sampling(
        temperature=0.0, presence_penalty=0.4, frequency_penalty=0.3, repetition_penalty=1.5, logprobs=VOCAB
    )
    expected = logits[0].clone()
    for token in {*prompt, *output}:
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    for token, count in Counter(output).items():
        expected[token] -= 0.4 + 0.3 * count
    told = one(params, logits, prompt, output)
    got = dict(told.logprobs[RequestId("a")].top)
    assert got == pytest.approx(dict(enumerate(expected.log_softmax(-1).tolist())), abs=1e-5)
    assert told.tokens == [int(expected.argmax())]


def test_penalties_count_as_the_sequence_grows_and_start_over_when_it_shrinks():
    params = sampling(temperature=0.0, frequency_penalty=1.0, logprobs=1)
    sampler = Sampler(VOCAB, [EOS])
    sampler.admit(RequestId("a"), params)
    part = chunk("a", [5, 6], [])
    logits = logits_of(5)
    for output in ([], [8], [8, 9, 9], [9], [9, 10, 10, 10]):
        part.sequence.tokens[2:] = output
        assert sampler.sample([part], logits.clone()).logprobs == one(params, logits, output=output).logprobs


def test_bias_and_the_ban_on_early_ends():
    logits = torch.zeros(1, VOCAB)
    logits[0, EOS] = 9.0
    logits[0, 20] = 8.0
    early = sampling(temperature=0.0, min_tokens=2, stop_token_ids=(20,), logit_bias={30: 2.0, 999: 5.0})
    assert one(early, logits, output=[1]).tokens == [30]
    assert one(early, logits, output=[1, 1]).tokens == [EOS]
    assert one(sampling(temperature=0.0, min_tokens=2, ignore_eos=True), logits).tokens == [EOS]
    assert one(sampling(temperature=0.0, logit_bias={EOS: -100.0}), logits).tokens == [20]
    for seed in range(30):
        assert one(sampling(seed=seed, min_tokens=1), logits).tokens != [EOS]


def test_logprobs_are_before_temperature_and_truncation():
    logits = logits_of(6)
    told = one(sampling(temperature=0.3, top_k=2, seed=1, logprobs=3), logits)
    expected = logits[0].log_softmax(-1)
    scores = told.logprobs[RequestId("a")]
    assert scores.logprob == pytest.approx(float(expected[told.tokens[0]]), abs=1e-5)
    assert [i for i, _ in scores.top] == expected.topk(3).indices.tolist()
    assert one(sampling(temperature=0.0, logprobs=0), logits).logprobs[RequestId("a")].top == []


def test_a_banned_token_has_a_finite_logprob():
    told = one(sampling(temperature=0.0, min_tokens=1, logprobs=VOCAB), logits_of(7))
    assert dict(told.logprobs[RequestId("a")].top)[EOS] == -9999.0


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_logits_that_are_not_numbers_fail_their_request_alone(poison):
    sampler = Sampler(VOCAB, [EOS])
    logits = logits_of(8, rows=2)
    logits[1, 4] = poison
    for name in ("good", "bad"):
        sampler.admit(RequestId(name), sampling(temperature=0.0))
    with pytest.raises(StepFailed, match="bad") as caught:
        sampler.sample([chunk("good", [5], []), chunk("bad", [5], [])], logits)
    assert caught.value.request_ids == ["bad"]


def test_retire_forgets():
    sampler = Sampler(VOCAB, [EOS])
    sampler.admit(RequestId("a"), sampling())
    sampler.retire(RequestId("a"))
    sampler.retire(RequestId("a"))
    with pytest.raises(KeyError):
        sampler.prompt_logprobs(RequestId("a"))
