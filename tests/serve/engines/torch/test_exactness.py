"""Greedy float32 output is that of ``transformers`` generate, however the computation is cut up and moved."""

import random

import pytest

from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    BatchingConfig,
    Emit,
    RequestArrived,
    Sequence,
    SequenceRequest,
    StepExecuted,
)
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.engines.torch.generic import GenericModel
from tokenmill.serve.engines.torch.llama import LlamaModel

OUT = 24
RUN = list(range(20, 30))
SCATTERED = [7, 3, 11, 5, 90, 91, 1, 200, 64, 2]


def copy_cache(source, blocks: list[int], target, into: list[int], tokens: int) -> None:
    """Move the first ``tokens`` tokens' KV from one executor's memory to another's."""
    block_tokens = source.memory.layout.block_tokens
    for plane in range(source.memory.layout.planes):
        for index in range(-(-tokens // block_tokens)):
            held = min(block_tokens, tokens - index * block_tokens)
            target.memory.write(plane, into[index], source.memory.read(plane, blocks[index], held))


def test_the_expected_implementation_is_used(models, architecture):
    model = models.driver(architecture).executor._model
    assert isinstance(model, GenericModel if architecture == "gpt_oss" else LlamaModel)


def test_one_early_token_changes_the_continuation(models, architecture, prompts):
    reference = models.reference(architecture)
    changed = list(prompts[0])
    changed[1] = 6 + (changed[1] + 50) % 256
    assert reference.continuation(changed, OUT) != reference.continuation(prompts[0], OUT)
    assert len(set(reference.continuation(prompts[0], OUT))) > OUT // 3


@pytest.mark.parametrize("blocks", [RUN, SCATTERED], ids=["run", "scattered"])
def test_plain(models, architecture, prompts, blocks):
    driver = models.driver(architecture)
    sequence = driver.sequence(prompts[0], blocks)
    driver.prefill(sequence)
    assert driver.decode(sequence, OUT) == models.reference(architecture).continuation(prompts[0], OUT)


@pytest.mark.parametrize("chunks", [(7,), (1, 13, 3, 11), (40, 1)], ids=str)
@pytest.mark.parametrize("blocks", [RUN, SCATTERED], ids=["run", "scattered"])
def test_prefill_in_odd_chunks(models, architecture, prompts, blocks, chunks):
    driver = models.driver(architecture)
    sequence = driver.sequence(prompts[0], blocks)
    driver.prefill(sequence, *chunks)
    assert driver.decode(sequence, OUT) == models.reference(architecture).continuation(prompts[0], OUT)


def test_many_sequences_join_and_decode_in_mixed_steps(models, architecture, prompts):
    driver = models.driver(architecture)
    sequences = [driver.sequence(p, list(range(10 * n, 10 * n + 10))) for n, p in enumerate(prompts)]
    for count in range(1, len(sequences) + 1):
        newcomer = sequences[count - 1]
        decoding = [(s, 1) for s in sequences[: count - 1]]
        driver.step(*decoding, (newcomer, 19))
        driver.step(*decoding, (newcomer, len(newcomer.tokens) - 19))
    while any(s.output_len < OUT for s in sequences):
        driver.step(*[(s, 1) for s in sequences if s.output_len < OUT])
    for sequence, prompt in zip(sequences, prompts, strict=True):
        got = sequence.tokens[sequence.prompt_len :][:OUT]
        assert got == models.reference(architecture).continuation(prompt, OUT)


def test_a_cached_prefix_is_not_computed_again(models, architecture, prompts):
    driver = models.driver(architecture)
    first = driver.sequence(prompts[0], RUN)
    driver.prefill(first)
    longer = prompts[0][:40] + prompts[1][:9]
    second = driver.sequence(longer, [*RUN[:5], 100, 41, 7, 8, 9])
    second.computed = 40
    driver.prefill(second)
    assert driver.decode(second, OUT) == models.reference(architecture).continuation(longer, OUT)


def test_preempted_and_recomputed_elsewhere(models, architecture, prompts):
    driver = models.driver(architecture)
    sequence = driver.sequence(prompts[0], RUN)
    driver.prefill(sequence)
    driver.decode(sequence, 9)
    sequence.computed, sequence.blocks = 0, list(SCATTERED)
    driver.prefill(sequence, 17)
    assert driver.decode(sequence, OUT) == models.reference(architecture).continuation(prompts[0], OUT)


def test_prefilled_there_decoded_here(models, architecture, prompts):
    here = models.driver(architecture)
    with models.fresh(architecture) as there:
        sender = there.sequence(prompts[0], SCATTERED)
        there.prefill(sender, 11)
        copy_cache(there.executor, SCATTERED, here.executor, RUN, len(prompts[0]))
    receiver = here.sequence(prompts[0], RUN, output=(sender.tokens[-1],))
    receiver.computed = len(prompts[0])
    assert here.decode(receiver, OUT) == models.reference(architecture).continuation(prompts[0], OUT)


def test_another_prompts_cache_gives_other_tokens(models, architecture, prompts):
    """The negative control: the cache alone carries the prompt."""
    driver = models.driver(architecture)
    prompt, other = prompts[0], prompts[1][: len(prompts[0])]
    theirs = driver.sequence(other, SCATTERED)
    driver.prefill(theirs)
    expected = models.reference(architecture).continuation(prompt, OUT)
    receiver = driver.sequence(prompt, SCATTERED, output=(expected[0],))
    receiver.computed = len(prompt)
    assert driver.decode(receiver, OUT) != expected


def test_the_step_scheduler_preempts_and_shares_prefixes(models, architecture, prompts):
    """Twelve requests with common beginnings on a cache that holds four of them."""
    with models.fresh(architecture, kv_blocks=34, max_model_len=128) as driver:
        executor = driver.executor
        scheduler = Scheduler(
            BatchingConfig(
                total_blocks=34, max_model_len=128, block_tokens=8, token_budget=33, max_sequences=8
            )
        )
        shared = prompts[2][:24]
        asked = [shared + p[: 5 + n] for n, p in enumerate(prompts)] + [prompts[0], prompts[0]]
        got: dict[str, list[int]] = {}
        for n, prompt in enumerate(asked):
            name = RequestId(f"q{n}")
            got[name] = []
            sequence = driver.sequence(prompt, [])
            executor.admit(name, executor._sampler._states[sequence.request.request_id].sampling, 0)
            request = SequenceRequest(request_id=name, prompt=prompt, max_tokens=OUT)
            scheduler.handle(RequestArrived(request), float(n))
        seen: set[int] = set()
        preempted: list[Sequence] = []
        for step in range(2000):
            plan = scheduler.next_step(100.0 + step).plan
            if not plan.chunks:
                break
            preempted += [c.sequence for c in plan.chunks if c.sequence.preemptions]
            seen |= {c.sequence.cached_tokens for c in plan.chunks}
            result = executor.execute(plan)
            for told in scheduler.handle(StepExecuted(plan, result.sampled), 100.0 + step):
                if isinstance(told, Emit):
                    got[told.request_id].append(told.token)
        assert preempted
        assert max(seen) >= 24
        reference = models.reference(architecture)
        assert list(got.values()) == [reference.continuation(prompt, OUT) for prompt in asked]


def test_bfloat16_chunking_and_batching_agree(models, prompts):
    """Not compared with another implementation: rounding differs. With itself, whatever the batch."""
    chooser = random.Random(3)
    with models.fresh("llama", dtype="bfloat16") as driver:
        alone = driver.sequence(prompts[0], RUN)
        driver.prefill(alone)
        expected = driver.decode(alone, 8)
        pair = [driver.sequence(prompts[0], SCATTERED), driver.sequence(prompts[1], list(range(100, 110)))]
        for sequence in pair:
            driver.prefill(sequence, chooser.randrange(20, 30))
        for _ in range(7):
            driver.step(*[(s, 1) for s in pair])
        assert pair[0].tokens[pair[0].prompt_len :] == expected
