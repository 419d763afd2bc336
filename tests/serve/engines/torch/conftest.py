"""Tiny random checkpoints, what ``transformers`` makes of them, and a hand-made step driver."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers

from tokenmill.decide.batching.types import Chunk, Sequence, SequenceRequest, StepPlan
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.engines.base import StepResult
from tokenmill.serve.engines.torch.executor import TorchExecutor
from tokenmill.serve.engines.torch.settings import TorchSettings
from tokenmill.testing.checkpoints import make_checkpoint

BLOCK_TOKENS = 8
ARCHITECTURES = ("llama", "qwen3", "mistral", "gpt_oss")
GREEDY = Sampling(max_tokens=1000, temperature=0.0)


class Reference:
    """What ``transformers`` answers, computed once a prompt."""

    def __init__(self, folder: Path) -> None:
        self._model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self._model.generation_config.eos_token_id = None
        self._known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def continuation(self, prompt: list[int], tokens: int) -> list[int]:
        key = (tuple(prompt), tokens)
        if key not in self._known:
            ids = torch.tensor([prompt])
            out = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False
            )
            self._known[key] = out[0, len(prompt) :].tolist()
        return self._known[key]

    def logits(self, tokens: list[int]) -> torch.Tensor:
        """Float32 [tokens, vocab]."""
        with torch.inference_mode():
            return self._model(torch.tensor([tokens])).logits[0]


class Driver:
    """Runs hand-made plans on an executor. Blocks are named by the test, to make any table it wants."""

    def __init__(self, executor: TorchExecutor) -> None:
        self.executor = executor
        self._names = 0

    def sequence(
        self,
        prompt: list[int],
        blocks: list[int],
        sampling: Sampling = GREEDY,
        *,
        output: tuple[int, ...] = (),
        score_prompt: bool = False,
    ) -> Sequence:
        self._names += 1
        name = RequestId(f"r{self._names}")
        self.executor.admit(name, sampling, len(prompt))
        request = SequenceRequest(
            request_id=name, prompt=prompt, max_tokens=sampling.max_tokens, score_prompt=score_prompt
        )
        return Sequence(
            request=request,
            tokens=[*prompt, *output],
            prompt_len=len(prompt),
            arrival=0.0,
            blocks=list(blocks),
        )

    def step(self, *work: tuple[Sequence, int]) -> StepResult:
        """Compute the next so many tokens of each sequence and take in what is sampled."""
        chunks = [
            Chunk(sequence, sequence.computed, length, sequence.computed + length == len(sequence.tokens))
            for sequence, length in work
        ]
        result = self.executor.execute(StepPlan(0, chunks, 0, 0))
        sampled = iter(result.sampled)
        for chunk in chunks:
            chunk.sequence.computed += chunk.length
            if chunk.samples:
                chunk.sequence.tokens.append(next(sampled))
        return result

    def prefill(self, sequence: Sequence, *chunks: int) -> None:
        """Compute what is not computed yet in chunks of these lengths, the last one repeated."""
        lengths = list(chunks) or [len(sequence.tokens)]
        target = len(sequence.tokens)
        while sequence.computed < target:
            length = lengths.pop(0) if len(lengths) > 1 else lengths[0]
            self.step((sequence, min(length, target - sequence.computed)))

    def decode(self, sequence: Sequence, tokens: int) -> list[int]:
        """Decode until there are so many outputs and return them."""
        while sequence.output_len < tokens:
            self.step((sequence, 1))
        return sequence.tokens[sequence.prompt_len :][:tokens]


class Models:
    """Checkpoints, references and one executor for each architecture.

    The executors are made at once: what lives for the session must not look like one test's leak.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._references: dict[str, Reference] = {}
        self._executors = {name: TorchExecutor(self.settings(name)) for name in ARCHITECTURES}
        for executor in self._executors.values():
            executor.load()

    def folder(self, architecture: str) -> Path:
        folder = self._folder / architecture
        if not folder.exists():
            make_checkpoint(folder, architecture, sharded=architecture == "qwen3")
        return folder

    def reference(self, architecture: str) -> Reference:
        if architecture not in self._references:
            self._references[architecture] = Reference(self.folder(architecture))
        return self._references[architecture]

    def driver(self, architecture: str) -> Driver:
        return Driver(self._executors[architecture])

    def settings(self, architecture: str, **changes) -> TorchSettings:
        given = {"dtype": "float32", "device": "cpu", "block_tokens": BLOCK_TOKENS, "kv_blocks": 256}
        return TorchSettings(model=self.folder(architecture), threads=1, **(given | changes))

    @contextmanager
    def fresh(self, architecture: str, **changes) -> Iterator[Driver]:
        """One more executor, with a cache of its own."""
        executor = TorchExecutor(self.settings(architecture, **changes))
        executor.load()
        try:
            yield Driver(executor)
        finally:
            executor.close()

    def close(self) -> None:
        for executor in self._executors.values():
            executor.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Iterator[Models]:
    torch.set_num_threads(1)
    made = Models(tmp_path_factory.mktemp("checkpoints"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Ten prompts of 41 to 50 tokens, longer than the sliding windows of the tiny checkpoints."""
    chooser = random.Random(5)
    return [[chooser.randrange(6, 262) for _ in range(41 + n)] for n in range(10)]


@pytest.fixture(params=ARCHITECTURES)
def architecture(request) -> str:
    return request.param
