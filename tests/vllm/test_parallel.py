"""One server over two processes: tensor parallel ranks make the model's tokens.

Not pipeline or expert parallel ones: vLLM 0.32.0 on a CPU starts with their flags, and its ranks break at the
first request, whoever asks.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from .plants import Plant, greedy, prompts
from .test_handover import served

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

NEW_TOKENS = 12
WAYS = [
    pytest.param({"both": 1, "parallel": {"tp": 2}, "architecture": name}, id=name)
    for name in ("llama", "gpt_oss")
]


def by_transformers(model: Path, bodies: list[dict]) -> list[list[int]]:
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    answers = []
    for body in bodies:
        prompt = torch.tensor([body["prompt"]])
        with torch.inference_mode():
            output = reference.generate(prompt, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)
        answers.append(output[0, prompt.shape[1] :].tolist())
    return answers


@pytest.mark.parametrize("plant", WAYS, indirect=True)
def test_tokens_are_those_of_transformers(plant: Plant) -> None:
    (server,) = plant.servers("both")
    assert "--tensor-parallel-size" in server.process.cmdline()
    bodies = [greedy(prompt, NEW_TOKENS) for prompt in prompts(4, "parallel")]
    clients = asyncio.run(served(plant, bodies, "parallel"))
    assert [client.error for client in clients] == [None] * len(bodies)
    model = Path(plant.spec["model"]["path"])
    assert [client.tokens for client in clients] == by_transformers(model, bodies)
