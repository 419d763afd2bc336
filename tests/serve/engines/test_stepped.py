"""What the stepping shell does when steps fail, with the simulated executor under it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tokenmill.clock import SystemClock
from tokenmill.decide.batching.types import StepPlan
from tokenmill.errors import ConfigError
from tokenmill.protocol.items import Failed, Finished
from tokenmill.serve.engines.base import ExecutorFacts, StepFailed, StepResult
from tokenmill.serve.engines.opening import batching_config
from tokenmill.serve.engines.sim.executor import SimExecutor, SimSettings
from tokenmill.serve.engines.stepped import SteppedEngine
from tokenmill.spec.process import WorkerConfig
from tokenmill.testing.engine_client import EngineClient, finished

BAD_TOKEN = 77


@pytest.fixture
def model(tmp_path: Path) -> Path:
    vocab = {f"t{i}": i for i in range(256)}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    return tmp_path


class Brittle(SimExecutor):
    """Fails steps whose plan meets ``fails``."""

    mode = "none"

    def execute(self, plan: StepPlan) -> StepResult:
        bad = [c.sequence.request.request_id for c in plan.chunks if c.sequence.tokens[0] == BAD_TOKEN]
        if self.mode == "named" and bad:
            raise StepFailed("not a number", bad)
        if self.mode == "always" or (self.mode == "once" and bad):
            self.mode = "none" if self.mode == "once" else self.mode
            raise RuntimeError("out of memory")
        return super().execute(plan)

    def load(self) -> ExecutorFacts:
        if self.mode == "load":
            raise ConfigError("model: broken", param="model")
        return super().load()


def engine(model: Path, mode: str) -> tuple[SteppedEngine, Brittle]:
    executor = Brittle(SimSettings(model=model, kv_blocks=64, speedup=100), SystemClock())
    executor.mode = mode
    config = WorkerConfig(engine="sim")
    made = SteppedEngine(
        name="sim",
        executor=executor,
        make_batching=lambda facts: batching_config(config, facts),
        transport=None,
        clock=SystemClock(),
    )
    return made, executor


async def test_a_request_that_breaks_its_step_fails_alone(model: Path) -> None:
    made, executor = engine(model, "none")
    async with EngineClient(made) as client:
        alone = await client.generate([9] * 20, max_tokens=60)
        executor.mode = "named"
        _, good = client.submit([9] * 20, max_tokens=60)
        _, bad = client.submit([BAD_TOKEN] * 20, max_tokens=60)
        await finished(good, bad)
        assert good.tokens == alone
        assert isinstance(bad.end, Failed)
        assert not bad.end.retryable
        assert client.engine.metrics().kv_blocks_used == 0


async def test_a_failed_step_fails_its_requests_and_the_engine_goes_on(model: Path) -> None:
    made, _ = engine(model, "once")
    async with EngineClient(made) as client:
        _, bad = client.submit([BAD_TOKEN] * 5)
        await finished(bad)
        assert isinstance(bad.end, Failed)
        assert bad.end.retryable
        assert "out of memory" in bad.end.message
        _, good = client.submit([9] * 5)
        await finished(good)
        assert isinstance(good.end, Finished)


async def test_an_engine_whose_every_step_fails_says_that_it_is_broken(model: Path) -> None:
    made, _ = engine(model, "always")
    async with EngineClient(made) as client:
        for _ in range(3):
            _, answer = client.submit([9] * 5)
            await finished(answer)
            assert isinstance(answer.end, Failed)
        why = await asyncio.wait_for(made.failure(), 10)
        assert "out of memory" in why
        _, late = client.submit([9] * 5)
        await finished(late)
        assert isinstance(late.end, Failed)
        assert late.end.retryable


async def test_an_executor_that_cannot_load_fails_the_start(model: Path) -> None:
    made, _ = engine(model, "load")
    with pytest.raises(ConfigError, match="broken"):
        async with EngineClient(made):
            pass


async def test_requests_that_a_stopping_engine_has_not_seen_end_too(model: Path) -> None:
    made, _ = engine(model, "none")
    async with EngineClient(made) as client:
        _, running = client.submit([9] * 5, max_tokens=1000)
        await asyncio.wait_for(running.progress.wait(), 10)
        stopping = asyncio.create_task(made.stop())
        _, unseen = client.submit([9] * 5)
        await asyncio.sleep(0)
        _, late = client.submit([9] * 5)
        await finished(running, unseen, late)
        await stopping
        for answer in (running, unseen, late):
            assert isinstance(answer.end, Failed)
            assert answer.end.retryable


async def test_requests_that_come_while_the_engine_breaks_end_too(model: Path) -> None:
    made, _ = engine(model, "always")
    async with EngineClient(made) as client:
        broken = asyncio.ensure_future(made.failure())
        answers = []
        while not broken.done():
            answers.append(client.submit([9] * 5)[1])
            await asyncio.sleep(0)
        answers.append(client.submit([9] * 5)[1])
        await finished(*answers)
        assert all(isinstance(answer.end, Failed) for answer in answers)
