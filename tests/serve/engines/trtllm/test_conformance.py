"""The engine suite, over HTTP against the double."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed, Finished, Tokens
from tokenmill.serve.engines.base import Engine
from tokenmill.testing.engine_client import EngineClient, finished
from tokenmill.testing.engine_conformance import EngineConformance
from tokenmill.testing.trtllm_double.options import Quirks

from .conftest import DoubledEngine


class TestTrtllm(EngineConformance):
    """Against a double of the version that was read."""

    quirks = Quirks(step_ms=0.2)

    @pytest.fixture(autouse=True)
    def _with_checkpoint(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint

    def make_engine(
        self, *, kv_blocks: int = 256, prefill_budget: int = 64, role: Role = Role.BOTH
    ) -> Engine:
        """The double does not cut prompts into chunks, and takes room for whole sequences beforehand."""
        del prefill_budget
        room = kv_blocks if kv_blocks < 256 else 2 * kv_blocks
        return DoubledEngine(self._checkpoint, role, kv_blocks=room, quirks=self.quirks)

    async def test_too_few_blocks_change_nothing(self) -> None:
        """Room is taken for whole sequences, so that some wait and none is pushed out."""
        prompts = [self.prompt(60, seed) for seed in range(4)]
        async with EngineClient(self.make_engine()) as client:
            alone = [await client.generate(prompt, max_tokens=40) for prompt in prompts]
        async with EngineClient(self.make_engine(kv_blocks=14)) as client:
            answers = [client.submit(prompt, max_tokens=40)[1] for prompt in prompts]
            await finished(*answers)
            assert [answer.tokens for answer in answers] == alone

    async def test_log_probabilities(self) -> None:
        """Each token has one, and the best alternative where it is the chosen token."""
        async with EngineClient(self.make_engine()) as client:
            _, answer = client.submit(self.prompt(80), max_tokens=5, logprobs=1)
            await finished(answer)
            items = [item for item in answer.items if isinstance(item, Tokens | Finished)]
            scored = [entry for item in items for entry in item.logprobs or []]
            assert len(scored) == 5
            assert all(entry.logprob < 0 for entry in scored)
            assert [entry.top for entry in scored] == [
                [(token, entry.logprob)] for token, entry in zip(answer.tokens, scored, strict=True)
            ]

    async def test_a_prompts_log_probabilities_are_refused(self) -> None:
        """The server has no field for them."""
        async with EngineClient(self.make_engine()) as client:
            _, answer = client.submit(self.prompt(8), prompt_logprobs=0)
            await finished(answer)
            assert isinstance(answer.end, Failed)
            assert (answer.end.status, answer.end.retryable) == (400, False)


class TestOldTrtllm(TestTrtllm):
    """Against a double of an early version: its own ids, and streams without a decode's first token."""

    quirks = Quirks(step_ms=0.2, old=True)
