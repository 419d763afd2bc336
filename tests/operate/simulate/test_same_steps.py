"""The engine that serves and the simulator take the same steps at the same moments.

A real engine (its thread, its scheduler, its executor) runs on a virtual clock: its device's waiting moves
the clock on, and requests come in when the clock passes their arrival. The simulator is given the same
factory file and trace.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from tests.operate.simulate.plants import write_factory

from tokenmill.clock import VirtualClock
from tokenmill.decide.perf.step_time import LinearStepTime, StepTimeModel
from tokenmill.operate.simulate.command import NO_SCENARIO
from tokenmill.operate.simulate.scenes import Declared, Surroundings, read_factory, staged
from tokenmill.profiles.sources import step_time_source
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Finished
from tokenmill.serve.engines.base import EngineOutput
from tokenmill.serve.engines.opening import batching_config, sim_settings
from tokenmill.serve.engines.sim.executor import SimExecutor
from tokenmill.serve.engines.stepped import SteppedEngine
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.synthetic import make_trace
from tokenmill.simulate.synthetic_words import parse_load
from tokenmill.simulate.timing import ModelTimes
from tokenmill.simulate.traces import Trace
from tokenmill.spec.derive import worker_config
from tokenmill.spec.models import resolve_model

PATIENCE_S = 60.0

FACTORY = """
stages:
  - {name: both, role: both, engine: sim, kv_blocks: BLOCKS, max_sequences: 6, token_budget: 96,
     engine_args: {fixed_ms: 12, prefill_token_ms: 0.2, decode_sequence_ms: 0.7, decode_context_ms: 0.003}}
"""

LOADS = {
    "light": ("poisson:rate=1,prompt=60,output=12,output_cv=0.5,requests=20", 400),
    "crowded": ("poisson:rate=14,prompt=110,prompt_cv=0.6,output=25,output_cv=0.5,requests=120", 400),
    "shared heads": (
        "poisson:rate=14,prompt=180,prompt_cv=0.3,output=25,shared=128,systems=3,requests=120",
        400,
    ),
    "too little memory": (
        "poisson:rate=14,prompt=110,prompt_cv=0.4,output=40,output_cv=0.5,requests=120",
        34,
    ),
}


class Work(NamedTuple):
    """What a step was asked to do: the sums of ``StepTimeModel.mixed_ms``."""

    new_tokens: float
    prefill_context: float
    sequences: float
    decode_context: float


class Noting(LinearStepTime, frozen=True, kw_only=True):
    """Notes what it is asked."""

    asked: list[Work] = []

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        self.asked.append(Work(new_tokens, prefill_context, sequences, decode_context))
        return super().mixed_ms(new_tokens, prefill_context, sequences, decode_context)


class Stepping:
    """A real engine on a virtual clock, and what it did. ``ends``: when each step ended."""

    def __init__(self, trace: Trace, prompts: list[list[int]]) -> None:
        self.clock = VirtualClock()
        self.ends: list[float] = []
        self.finished: dict[int, tuple[int, int]] = {}
        self.done = asyncio.Event()
        self._trace = trace
        self._prompts = prompts
        self._sent = 0
        self._tokens: dict[RequestId, int] = {}
        self._loop = asyncio.get_running_loop()
        self.engine: SteppedEngine

    def sleep(self, duration_s: float) -> None:
        """The device works: what comes meanwhile is there when the step has ended."""
        end = self.clock.now() + duration_s
        self.ends.append(end)
        asyncio.run_coroutine_threadsafe(self._until(end), self._loop).result(PATIENCE_S)

    async def _until(self, end: float) -> None:
        requests = self._trace.requests
        while self._sent < len(requests) and requests[self._sent].at_s < end:
            self.send_next()
        self.clock.advance_to(end)

    def send_next(self) -> None:
        number = self._sent
        request = self._trace.requests[number]
        self._sent += 1
        self.clock.advance_to(max(self.clock.now(), request.at_s))
        sampling = Sampling(max_tokens=request.output_tokens, temperature=0.0, ignore_eos=True)
        prompt = self._prompts[number]
        self.engine.submit(
            GenerateRequest(request_id=RequestId(str(number)), prompt=prompt, sampling=sampling)
        )

    def take(self, output: EngineOutput) -> None:
        for request_id, item in output.items:
            assert not isinstance(item, Failed), item
            tokens = self._tokens[request_id] = self._tokens.get(request_id, 0) + len(
                getattr(item, "tokens", [])
            )
            if isinstance(item, Finished):
                self.finished[int(request_id)] = (tokens, item.cached_tokens)
        if len(self.finished) == len(self._trace.requests):
            self.done.set()
        elif len(self.finished) == self._sent:
            self.send_next()  # it stands still


def _prompts(trace: Trace, seed: int) -> list[list[int]]:
    chance = random.Random(seed)
    blocks: dict[int, list[int]] = {}
    prompts = []
    for request in trace.requests:
        head: list[int] = []
        for prefix_id in request.prefix_ids:
            head += blocks.setdefault(prefix_id, chance.choices(range(10, 2000), k=trace.prefix_block_tokens))
        missing = request.prompt_tokens - len(head)
        prompts.append(head[: request.prompt_tokens] + chance.choices(range(10, 2000), k=max(0, missing)))
    return prompts


async def _stepped(declared: Declared, trace: Trace, noting: Noting) -> Stepping:
    config = worker_config(declared.factory, declared.stages[0], 0)
    stepping = Stepping(trace, _prompts(trace, 7))
    settings = msgspec.structs.replace(sim_settings(config, resolve_model("")), step_time=noting)
    stepping.engine = SteppedEngine(
        name="sim",
        executor=SimExecutor(settings, stepping),
        make_batching=lambda facts: batching_config(config, facts),
        transport=None,
        clock=stepping.clock,
    )
    await stepping.engine.start(stepping.take)
    try:
        stepping.send_next()
        async with asyncio.timeout(PATIENCE_S):
            await stepping.done.wait()
    finally:
        await stepping.engine.stop()
    return stepping


@pytest.mark.parametrize("load", LOADS)
async def test_the_simulator_takes_the_steps_that_the_engine_takes(tmp_path: Path, load: str) -> None:
    words, blocks = LOADS[load]
    trace = make_trace(parse_load(words), seed=3)
    file = write_factory(tmp_path / "factory.yaml", FACTORY.replace("BLOCKS", str(blocks)))
    declared = read_factory(file, "")
    plant = staged(declared, Surroundings(scenario=NO_SCENARIO, source=step_time_source(database=False)))
    times: StepTimeModel = plant.devices["both"].times
    assert isinstance(times, LinearStepTime)
    fields = {name: getattr(times, name) for name in LinearStepTime.__struct_fields__}

    real = Noting(**fields, asked=[])
    stepping = await _stepped(declared, trace, real)

    simulated = Noting(**fields, asked=[])
    stage = msgspec.structs.replace(plant.scene.stages[0], times=ModelTimes(simulated))
    # Step by step, so that each is asked for; that jumps give the same is tested beside the simulator.
    scene = msgspec.structs.replace(plant.scene, stages=[stage], admission=None)
    record = simulate(scene, trace, jump=False)

    assert simulated.asked == real.asked
    assert record.steps == len(stepping.ends)
    assert sum(request.output_tokens for request in record.requests) == trace.output_tokens
    for number, request in enumerate(record.requests):
        assert (request.output_tokens, request.cached_tokens) == stepping.finished[number]
        assert request.first_s in stepping.ends
        assert request.last_s in stepping.ends
    preempted = record.stages[0].preemptions
    assert (preempted > 0) == (load == "too little memory")
    assert any(request.cached_tokens for request in record.requests) == (load == "shared heads")
