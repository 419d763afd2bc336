"""Measures an engine in this process: the embedded ones, or a server that an engine launches or attaches to.

It knows the ``Engine`` seam and no engine by name.
"""

from __future__ import annotations

import asyncio
from itertools import count

from tokenmill.clock import SystemClock
from tokenmill.decide.perf.online import Steps
from tokenmill.errors import TokenmillError, WorkerFailed
from tokenmill.operate.profile.points import Point
from tokenmill.operate.profile.probe import ProbeFacts, Prompts
from tokenmill.operate.profile.runs import Arrival, Run, Step
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Finished, Tokens
from tokenmill.serve.engines.base import Engine, EngineOutput

_FIRST_ORDINARY_ID = 10
"""Ids below are special tokens in most vocabularies."""


class EngineProbe:
    """See ``Probe``. ``timeout_s``: the longest that one point may take."""

    def __init__(self, engine: Engine, clock: SystemClock, *, timeout_s: float, seed: int = 0) -> None:
        self._engine = engine
        self._clock = clock
        self._timeout_s = timeout_s
        self._seed = seed
        self._numbers = count()
        self._seen = Steps()
        self._steps: list[Step] = []
        self._last_at = 0.0
        self._arrivals: dict[RequestId, list[Arrival]] = {}
        self._open: set[RequestId] = set()
        self._done = asyncio.Event()
        self._failure = ""

    async def start(self) -> ProbeFacts:
        """See ``Probe``."""
        info = await self._engine.start(self._take)
        self._prompts = Prompts(_FIRST_ORDINARY_ID, max(_FIRST_ORDINARY_ID + 1, info.vocab_size), self._seed)
        await self.run(Point(1, 16, 4))
        return ProbeFacts(
            model=info.model,
            engine=info.engine,
            method="steps" if self._steps else "arrivals",
            kv_tokens=info.kv_blocks * info.block_tokens,
            max_model_len=info.max_model_len,
            max_sequences=info.max_sequences,
        )

    async def run(self, point: Point) -> Run:
        """See ``Probe``."""
        self._steps, self._arrivals, self._failure = [], {}, ""
        self._done.clear()
        sampling = Sampling(max_tokens=point.output_tokens, temperature=0.0, ignore_eos=True)
        requests = [
            GenerateRequest(
                request_id=RequestId(f"profile-{next(self._numbers)}"),
                prompt=self._prompts.prompt(point.prompt_tokens),
                sampling=sampling,
            )
            for _ in range(point.prompts)
        ]
        self._open = {request.request_id for request in requests}
        self._arrivals = {request.request_id: [] for request in requests}
        started_at = self._clock.now()
        for request in requests:
            self._engine.submit(request)
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._done.wait()
        except TimeoutError:
            message = f"a batch of {point} took longer than {self._timeout_s:.0f} s; lower the sweep's limits"
            raise TokenmillError(message) from None
        finally:
            for request_id in list(self._open):
                self._engine.cancel(request_id)
        if self._failure:
            raise WorkerFailed(f"the engine failed: {self._failure}")
        return Run(point, started_at, list(self._arrivals.values()), self._steps)

    async def close(self) -> None:
        """See ``Probe``."""
        await self._engine.stop()

    def _take(self, output: EngineOutput) -> None:
        now = self._clock.now()
        metrics = output.metrics
        if self._seen.is_new(metrics):
            work = (metrics.prefill_tokens, metrics.prefill_context_tokens)
            decodes = (metrics.decode_tokens, metrics.decode_context_tokens)
            before_ms = (now - self._last_at) * 1000 - metrics.step_ms if self._steps else None
            self._last_at = now
            self._steps.append(Step(*work, *decodes, metrics.step_ms, before_ms))
        for request_id, item in output.items:
            if request_id not in self._open:
                continue
            if isinstance(item, Tokens | Finished) and item.tokens:
                self._arrivals[request_id].append(Arrival(now, len(item.tokens)))
            if isinstance(item, Failed):
                self._failure = item.message
            if isinstance(item, Finished | Failed):
                self._open.discard(request_id)
                if not self._open:
                    self._done.set()
