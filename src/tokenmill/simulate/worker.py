"""One simulated worker: the real step scheduler, a device that only takes time, and what it tells.

It must not know the clock's owner, other workers or routing: it is told when something happens.
"""

from __future__ import annotations

from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    BatchingConfig,
    Emit,
    Finish,
    Instruction,
    Reject,
    RequestArrived,
    SequenceRequest,
    StepExecuted,
    StepPlan,
)
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.protocol.kv_events import KvEvent
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.simulate.prompts import PromptMaker, unpack
from tokenmill.simulate.report import Journal
from tokenmill.simulate.timing import PlantTimes


class PlantWorker:
    """Call ``submit`` as requests come, ``start`` when idle, ``finish`` when the time it gave has come."""

    def __init__(
        self,
        worker_id: WorkerId,
        config: BatchingConfig,
        times: PlantTimes,
        prompts: PromptMaker,
        journal: Journal,
    ) -> None:
        self.card = _card(worker_id, config)
        self._scheduler = Scheduler(config)
        self._times = times
        self._prompts = prompts
        self._journal = journal
        self._plan: StepPlan | None = None
        self._step_ms = self._last_step_ms = 0.0
        self.ended: list[RequestId] = []
        """Requests that have ended since the list was last taken away."""

    @property
    def busy(self) -> bool:
        """A step is under way."""
        return self._plan is not None

    def submit(self, request_id: RequestId, packed: bytes, output_tokens: int, now: float) -> None:
        """A request arrives. ``packed``: prompt token ids; exactly ``output_tokens`` will be generated."""
        request = SequenceRequest(request_id=request_id, prompt=unpack(packed), max_tokens=output_tokens)
        self._take(self._scheduler.handle(RequestArrived(request), now), now)

    def start(self, now: float) -> float | None:
        """Begin the next step and return when it ends, seconds; None when there is nothing to do."""
        step = self._scheduler.next_step(now)
        self._take(step.instructions, now)
        if not step.plan.chunks:
            return None
        self._plan = step.plan
        self._step_ms = self._times.step_ms(step.plan, self._scheduler.kv_share)
        return now + self._step_ms / 1000

    def finish(self, now: float) -> None:
        """The step has ended: its tokens are out."""
        plan, self._plan = self._plan, None
        self._last_step_ms = self._step_ms
        assert plan is not None, "no step is under way"
        samples = plan.decode_tokens
        for chunk in plan.chunks[samples:]:
            samples += chunk.samples
        executed = StepExecuted(plan, list(self._prompts.own(samples)))
        self._take(self._scheduler.handle(executed, now), now)

    def metrics(self) -> StepMetrics:
        """Return the load now."""
        return self._scheduler.metrics(self._last_step_ms)

    def drain_kv_events(self) -> list[KvEvent]:
        """Return what entered and left the cache since the last call."""
        return self._scheduler.drain_kv_events()

    def _take(self, instructions: list[Instruction], now: float) -> None:
        journal = self._journal
        for instruction in instructions:
            if isinstance(instruction, Emit):
                journal.token(instruction.request_id, now)
            elif isinstance(instruction, Finish):
                journal.finished(instruction.request_id, instruction.cached_tokens)
                self.ended.append(instruction.request_id)
            elif isinstance(instruction, Reject):
                journal.refused(instruction.request_id)
                self.ended.append(instruction.request_id)


def _card(worker_id: WorkerId, config: BatchingConfig) -> WorkerCard:
    return WorkerCard(
        worker_id=worker_id,
        role=config.role,
        stage=config.role.value,
        state=WorkerState.READY,
        address="",
        engine="plant",
        model="plant",
        max_model_len=config.max_model_len,
        block_tokens=config.block_tokens,
        kv_blocks=config.total_blocks,
        max_sequences=config.max_sequences,
    )
