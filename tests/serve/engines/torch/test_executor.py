"""What the executor does beside greedy decoding: sampling that survives moves, scores, errors, its memory."""

import math

import pytest
import torch

from tokenmill.decide.batching.types import StepPlan
from tokenmill.errors import ConfigError
from tokenmill.protocol.generate import Sampling
from tokenmill.serve.engines.base import StepFailed
from tokenmill.serve.engines.torch.executor import TorchExecutor
from tokenmill.serve.engines.torch.settings import TorchSettings

RUN = list(range(20, 32))
SCATTERED = [7, 3, 11, 5, 90, 91, 1, 200, 64, 2, 33, 44]
WILD = Sampling(
    max_tokens=99,
    temperature=1.2,
    top_p=0.95,
    presence_penalty=0.3,
    frequency_penalty=0.2,
    repetition_penalty=1.1,
    seed=11,
)


@pytest.mark.parametrize(
    "params", [WILD, Sampling(max_tokens=99, temperature=0.8, seed=3)], ids=["wild", "plain"]
)
def test_sampled_tokens_survive_batching_preemption_and_replay(models, prompts, params):
    driver = models.driver("llama")
    alone = driver.sequence(prompts[0], RUN, params)
    driver.prefill(alone)
    expected = driver.decode(alone, 30)
    assert len(set(expected)) > 10

    moved = driver.sequence(prompts[0], SCATTERED, params)
    other = driver.sequence(prompts[1], list(range(100, 112)), WILD)
    driver.step((moved, 13), (other, 20))
    driver.prefill(moved)
    driver.prefill(other)
    while moved.output_len < 12:
        driver.step((moved, 1), (other, 1))
    moved.computed, moved.blocks = 0, list(RUN)
    driver.prefill(moved, 9)
    assert driver.decode(moved, 30) == expected

    with models.fresh("llama") as elsewhere:
        replay = elsewhere.sequence(prompts[0], SCATTERED, params, output=tuple(expected[:17]))
        elsewhere.prefill(replay, 16)
        assert elsewhere.decode(replay, 30) == expected


def test_prompt_logprobs_are_those_of_transformers(models, architecture, prompts):
    driver = models.driver(architecture)
    params = Sampling(max_tokens=9, temperature=0.0, prompt_logprobs=2, logprobs=1)
    prompt = prompts[0]
    sequence = driver.sequence(prompt, SCATTERED, params, score_prompt=True)
    bystander = driver.sequence(prompts[1], RUN)
    driver.prefill(bystander)
    told = []
    for length in (1, 16, len(prompt) - 17):
        result = driver.step((bystander, 1), (sequence, length))
        first, scores = result.prompt_logprobs[sequence.request.request_id]
        assert first == len(told) + 1
        told += scores
    assert len(told) == len(prompt) - 1
    expected = models.reference(architecture).logits(prompt).log_softmax(-1)
    for position, score in enumerate(told):
        row = expected[position]
        assert score.logprob == pytest.approx(float(row[prompt[position + 1]]), abs=1e-3)
        assert [i for i, _ in score.top] == row.topk(2).indices.tolist()
    last = result.logprobs[sequence.request.request_id]
    assert last.logprob == pytest.approx(float(expected[-1].max()), abs=1e-3)
    assert driver.step((sequence, 1)).prompt_logprobs == {}


def test_what_earlier_owners_left_in_blocks_is_never_read(models, architecture, prompts):
    with models.fresh(architecture, kv_blocks=40, max_model_len=256) as driver:
        storage = torch.frombuffer(driver.executor.memory.region, dtype=torch.float32)
        storage.fill_(math.nan)
        pair = [
            driver.sequence(prompts[0], [3, 9, 1, 7, 5, 11, 13, 15, 17, 19]),
            driver.sequence(prompts[1], RUN),
        ]
        driver.prefill(pair[0], 10)
        driver.prefill(pair[1])
        for _ in range(15):
            driver.step(*[(s, 1) for s in pair])
        for sequence, prompt in zip(pair, prompts, strict=False):
            expected = models.reference(architecture).continuation(prompt, 24)
            assert sequence.tokens[len(prompt) :] == expected[:16]


def test_a_poisoned_cache_fails_its_request_alone(models, prompts):
    with models.fresh("llama") as driver:
        good, bad = driver.sequence(prompts[0], RUN), driver.sequence(prompts[1], SCATTERED)
        driver.prefill(good)
        driver.prefill(bad)
        memory = driver.executor.memory
        memory.write(1, SCATTERED[0], torch.full((2, 16), math.nan).numpy().tobytes())
        with pytest.raises(StepFailed, match="not numbers") as caught:
            driver.step((good, 1), (bad, 1))
        assert caught.value.request_ids == [bad.request.request_id]
        assert driver.decode(good, 24) == models.reference("llama").continuation(prompts[0], 24)


def test_an_empty_plan_gives_nothing(models):
    assert models.driver("llama").executor.execute(StepPlan(0, [], 0, 0)).sampled == []


def test_facts(models):
    executor = TorchExecutor(models.settings("llama", kv_blocks=0, kv_memory_mb=8, max_model_len=512))
    facts = executor.load()
    layout = executor.memory.layout
    executor.close()
    assert (layout.planes, layout.token_bytes, layout.dtype) == (8, 2 * 16 * 4, "float32")
    assert facts.kv_blocks == 8 * 2**20 // (8 * 8 * 128)
    assert (facts.max_model_len, facts.vocab_size, facts.eos_token_ids) == (512, 262, [1])


def test_fingerprints_tell_models_and_dtypes_apart(models):
    prints = set()
    for name, changes in (("llama", {}), ("llama", {"dtype": "bfloat16"}), ("qwen3", {}), ("llama", {})):
        executor = TorchExecutor(models.settings(name, **changes))
        prints.add(executor.load().fingerprint)
        executor.close()
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kv_blocks": 100}, r"hold 800 tokens, but one .* 1024 needs 128 blocks: give --kv-memory-mb 1"),
        ({"max_model_len": 4096}, "above the model's 1024 tokens"),
        ({"dtype": "float16"}, "float16 is not supported on CPU"),
        ({"dtype": "int3"}, "int3 is not supported"),
        ({"device": "tpu"}, "'tpu' is not one of auto, cpu, cuda"),
        ({"device": "cuda:77"}, "cuda:77 is not there"),
    ],
    ids=str,
)
def test_settings_at_fault(models, changes, says):
    executor = TorchExecutor(models.settings("llama", **changes))
    with pytest.raises(ConfigError, match=says):
        executor.load()
    executor.close()


def test_close_without_load(tmp_path):
    executor = TorchExecutor(TorchSettings(model=tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="no folder"):
        executor.load()
    executor.close()
    executor.close()
