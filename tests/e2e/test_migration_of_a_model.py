"""A model's request goes on elsewhere as it would have: greedy, seeded, with penalties and limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tokenmill.testing.running_factory import RunningFactory

from .streams import migrations, run_all, start_factory, until, wait_for_workers

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]
pytest.importorskip("torch")

TOKENS = 160

TORCH = {
    "metadata": {"name": "migration-of-a-model"},
    "router": {"policy": "round-robin", "prefill": "remote"},
    "frontend": {"worker_wait_s": 60},
    "migration": {"max_attempts": 5},
    "stages": [
        # float32: in bfloat16 another batch may round differently.
        {"name": "prefill", "role": "prefill", "dtype": "float32"},
        {"name": "decode", "role": "decode", "replicas": 2, "dtype": "float32"},
    ],
}

PLAIN = {"prompt": "Once upon a time", "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
SAMPLED = {**PLAIN, "temperature": 1.2, "seed": 5}
BODIES = [
    PLAIN,
    SAMPLED,
    {**SAMPLED, "seed": 6, "top_p": 0.9, "top_k": 40, "logprobs": 2},
    {**PLAIN, "presence_penalty": 1.0, "frequency_penalty": 0.5},
    {**SAMPLED, "repetition_penalty": 1.3, "min_p": 0.02},
    {**PLAIN, "prompt": "The robot said", "logprobs": 0},
    # Neither may end before the seam, and both limits count what came before it.
    {**SAMPLED, "seed": 8, "ignore_eos": False, "min_tokens": TOKENS - 20},
    {**PLAIN, "prompt": "A KV cache", "logit_bias": {"300": 2.0}, "frequency_penalty": 1.5},
]


@pytest.fixture
def factory(tmp_path) -> Iterator[RunningFactory]:
    factory = start_factory(tmp_path, TORCH)
    try:
        factory.wait_ready()
        wait_for_workers(factory, prefill=1, decode=2)
        yield factory
    finally:
        status = factory.stop()
    assert status == 0, factory.log()


def without_logprobs(clients) -> list[tuple]:
    return [client.result[:-1] for client in clients]


def test_a_model_goes_on_as_it_would_have(factory) -> None:
    undisturbed = asyncio.run(run_all(factory, BODIES, "undisturbed"))
    assert [client.error for client in undisturbed] == [None] * len(BODIES)

    async def during(clients):
        await until(lambda: all(len(client.tokens) > 10 for client in clients))
        assert not any(client.finish for client in clients), "too quick to be disturbed"
        factory.workers("decode")[0].kill()

    clients = asyncio.run(run_all(factory, BODIES, "killed", during))
    assert migrations(factory).get(("lost", "decode"), 0) > 0
    assert without_logprobs(clients) == without_logprobs(undisturbed)
    for client, whole in zip(clients, undisturbed, strict=True):
        assert client.logprobs == pytest.approx(whole.logprobs, abs=1e-3)
