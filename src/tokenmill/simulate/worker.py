"""One simulated worker: the real step scheduler, a device that only takes time, and what it tells.

Steps in which nothing but decoding happens are crossed in one jump (``decide.batching.decode_run``): times of
their ends are worked out at once, and looked at again only when something comes that could change them. The
result is the same to the last bit as step by step. It must not know other workers, routing or links.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from itertools import accumulate
from typing import NamedTuple, Protocol

import msgspec

from tokenmill.decide.batching.decode_run import DecodeRun
from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    Emit,
    Event,
    Finish,
    Instruction,
    Reject,
    StepExecuted,
    StepPlan,
)
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.kv_events import KvEvent
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.simulate.flight import Flight
from tokenmill.simulate.kernel import STEP, WAKE, Kernel
from tokenmill.simulate.record import GapHistogram
from tokenmill.simulate.scene import StageScene


class Listener(Protocol):
    """Who hears what a worker says, at the moment it says it."""

    def began(self, flight: Flight) -> None:
        """A request's first token has come."""
        ...

    def ended(self, worker: SimWorker, finish: Finish) -> None:
        """A worker is done with a sequence."""
        ...

    def rejected(self, worker: SimWorker, reject: Reject) -> None:
        """A worker does not take a sequence."""
        ...

    def moved(self, worker: SimWorker, instruction: Instruction) -> None:
        """A worker says what is to happen with KV blocks."""
        ...

    def cached(self, worker: SimWorker, events: list[KvEvent]) -> None:
        """A worker's cache has changed."""
        ...

    last_only: bool
    """Of loads that tell of decodes only, none but the last before a question matters."""

    def loaded(self, worker: SimWorker, metrics: StepMetrics, at: float) -> None:
        """A worker told its load at ``at``."""
        ...

    def reporting(self, worker: SimWorker) -> None:
        """A worker that stood still will tell its load at ``report_at``."""
        ...

    def idle(self, worker: SimWorker) -> None:
        """A worker stands still."""
        ...


class Around(NamedTuple):
    """What all workers of a plant have in common. ``flights``: by request id. ``jump``: cross decodes."""

    kernel: Kernel
    listener: Listener
    flights: dict[RequestId, Flight]
    gaps: GapHistogram
    report_interval_s: float
    jump: bool


class SimWorker:
    """``number``: unlike all other workers'. ``index``: its place in its stage. ``factor``: its steps take
    so many times as long. ``draining``: it takes nothing new and is to leave."""

    def __init__(self, number: int, index: int, stage: StageScene, card: WorkerCard, around: Around) -> None:
        self.number = number
        self.index = index
        self.stage = stage
        self.card = card
        self.host = stage.host_of(index)
        self.scheduler = Scheduler(msgspec.structs.replace(stage.batching, role=stage.role))
        self.factor = 1.0
        self.draining = False
        self.gone = False
        self.ready = False
        self.steps = 0
        self.there_since = around.kernel.now
        self.told_events = 0
        self._kernel, self._listener = around.kernel, around.listener
        self._flights, self._gaps = around.flights, around.gaps
        self._report_interval_s = around.report_interval_s
        self._jump = around.jump
        self._plan: StepPlan | None = None
        self._run: DecodeRun | None = None
        self._regular = False  # all that decode had their last token at the end of the last step
        self._touched = False  # what the run was begun on may not hold any more
        self._ends: list[float] = []  # of the run's steps since the last full block; the first is their start
        self._steps_ms: list[float] = []
        self._ended = 0  # how many of these steps are over
        self._version = 0  # of the end of a step that is awaited
        self._started_s = self._end_s = 0.0
        self._step_ms = self._last_step_ms = 0.0
        self._waking = False
        self._reported_at = -math.inf
        self.report_at = math.inf
        self._told_handoffs = 0
        self._busy_s = 0.0
        self._busy_since: float | None = None

    # Facts ---------------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        """Something happens to its sequences."""
        self.report_before(self._kernel.now)
        self._touch()
        self._take(self.scheduler.handle(event, self._kernel.now))
        self._wake()

    def joins_decodes(self) -> None:
        """A sequence whose last token came elsewhere will decode here."""
        self._regular = False

    def slow_down(self, factor: float) -> None:
        """Steps that begin from now on take ``factor`` times what they would."""
        self.report_before(self._kernel.now)
        self._touch()
        self.factor = factor

    def fail(self) -> None:
        """It is gone, as it stands."""
        self.report_before(self._kernel.now)
        self.report_at = math.inf
        self._touch()
        if self._run is not None:
            self._close_run(self._run)
        self._version += 1
        self._plan = None
        self.gone = True
        self._stand_still()

    @property
    def busy(self) -> bool:
        """A step is under way."""
        return self._plan is not None or self._run is not None

    def busy_s(self, now: float) -> float:
        """Return the seconds spent in steps so far."""
        return self._busy_s if self._busy_since is None else self._busy_s + now - self._busy_since

    # Steps ---------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self.busy and not self._waking:
            self._waking = True
            self._kernel.at(self._kernel.now, WAKE, self.number, self._on_wake)

    def _on_wake(self, _: int) -> None:
        self._waking = False
        if not self.busy and not self.gone:
            self._begin()
            self._tell()
            if self.report_at == math.inf:
                self.report_at = max(self._kernel.now, self._reported_at + self._report_interval_s)
                self._listener.reporting(self)

    def _begin(self) -> None:
        """Begin the next step, or a run of them."""
        now = self._kernel.now
        if self._jump and self._regular:
            run = self.scheduler.decode_run()
            if run is not None:
                self._run = run
                self._touched = False
                self._begin_quiet(run)
                return
        step = self.scheduler.next_step(now)
        if step.instructions:
            self._take(step.instructions)
        plan = step.plan
        if not plan.chunks:
            self._stand_still()
            return
        if self._busy_since is None:
            self._busy_since = now
        decodes, prefill_context = plan.decode_tokens, 0
        decode_context = decodes + sum([chunk.start for chunk in plan.chunks[:decodes]])
        for chunk in plan.chunks[decodes:]:
            prefill_context += chunk.length * chunk.start + chunk.length * (chunk.length + 1) // 2
        self._plan = plan
        self._started_s = now
        step_ms = self.stage.times.step_ms(
            plan.prefill_tokens, prefill_context, plan.decode_tokens, decode_context, self.scheduler.kv_share
        )
        self._step_ms = step_ms * self.factor
        self._await(now + self._step_ms / 1000)

    def _await(self, end: float) -> None:
        self._version += 1
        self._end_s = end
        self._kernel.at(end, STEP, self.number, self._on_end, self._version)

    def _on_end(self, version: int) -> None:
        if version != self._version:
            return  # the run was cut short
        now, run = self._kernel.now, self._run
        if self.report_at < now:
            self.report_before(now)
        if run is None:
            self._finish()
            self._begin()
        else:
            self._roll(run, now, inclusive=True)
            if not self._touched and run.cross():
                self._begin_quiet(run)
            else:
                self._close_run(run)
                self._begin()
        self._tell()

    def _finish(self) -> None:
        """The step has ended: its tokens are out."""
        plan, self._plan = self._plan, None
        assert plan is not None, "no step is under way"
        self.steps += 1
        self._last_step_ms = self._step_ms
        samples = plan.decode_tokens
        for chunk in plan.chunks[samples:]:
            samples += chunk.samples
        instructions = self.scheduler.handle(StepExecuted(plan, [0] * samples), self._kernel.now)
        going_on = self._take(instructions)
        self._regular = going_on == self.scheduler.decoding

    def _take(self, instructions: list[Instruction]) -> int:
        """Return how many sequences had a token and go on."""
        now, flights, listener = self._kernel.now, self._flights, self._listener
        going_on = in_step = 0
        for instruction in instructions:
            if type(instruction) is Emit:
                flight = flights[instruction.request_id]
                if flight.last_s == self._started_s and flight.tokens:
                    in_step += 1
                elif flight.last_s:
                    self._gaps.add(now - flight.last_s)
                else:
                    flight.record.first_s = now
                flight.tokens += 1
                flight.last_s = now
                going_on += 1
                if flight.tokens == 1:
                    listener.began(flight)
            elif type(instruction) is Finish:
                going_on -= 1
                listener.ended(self, instruction)
            elif type(instruction) is Reject:
                listener.rejected(self, instruction)
            else:
                listener.moved(self, instruction)
        if in_step:
            self._gaps.add(self._step_ms / 1000, in_step)
        return going_on

    def _stand_still(self) -> None:
        if self._busy_since is not None:
            self._busy_s += self._kernel.now - self._busy_since
            self._busy_since = None
        self._listener.idle(self)

    # Runs ----------------------------------------------------------------------------------------------

    def _begin_quiet(self, run: DecodeRun) -> None:
        """Work out when the steps until the next full block end."""
        times_ms = self.stage.times.decodes_ms(
            len(run.sequences), run.context_tokens, self.scheduler.kv_share, run.quiet
        )
        factor = self.factor
        if factor != 1.0:
            times_ms = [step_ms * factor for step_ms in times_ms]
        self._steps_ms = times_ms
        first_ms = times_ms[0]
        if times_ms.count(first_ms) == len(times_ms):
            steps_s = [first_ms / 1000] * len(times_ms)
        else:
            steps_s = [step_ms / 1000 for step_ms in times_ms]
        self._ends = list(accumulate(steps_s, initial=self._kernel.now))
        self._ended = 0
        if self._busy_since is None:
            self._busy_since = self._kernel.now
        self._await(self._ends[-1])

    def _roll(self, run: DecodeRun, instant: float, *, inclusive: bool) -> None:
        """Count the steps that are over by ``instant``."""
        ends, before = self._ends, self._ended
        bisect = bisect_right if inclusive else bisect_left
        ended = bisect(ends, instant, before + 1) - 1
        if ended == before:
            return
        self._ended = ended
        self.steps += ended - before
        self.scheduler.advance(run, ended - before)
        self._last_step_ms = self._steps_ms[ended - 1]
        self._gaps.add_steps(self._steps_ms[before:ended], len(run.sequences))

    def _touch(self) -> None:
        """Something comes that the run was not begun on: it ends with the step that is under way."""
        run = self._run
        if run is None:
            return
        self._roll(run, self._kernel.now, inclusive=self._kernel.kind >= STEP)
        self._touched = True
        last = self._ended + 1
        if last < len(self._ends) - 1:
            del self._ends[last + 1 :]
            del self._steps_ms[last:]
            self._await(self._ends[last])

    def _close_run(self, run: DecodeRun) -> None:
        run.close()
        self._run = None
        flights, done, last_s = self._flights, run.done, self._ends[self._ended]
        if done:
            for sequence in run.sequences:
                flight = flights[sequence.request.request_id]
                flight.tokens += done
                flight.last_s = last_s

    # Telling -------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Say what has entered and left the cache."""
        events = self.scheduler.drain_kv_events()
        if events:
            self._listener.cached(self, events)

    def report_before(self, instant: float, delay_s: float = 0.0) -> None:
        """Tell the loads that somebody ``delay_s`` seconds away hears before ``instant``."""
        while self.report_at + delay_s < instant:
            self._report(instant, delay_s)

    def _report(self, instant: float, delay_s: float) -> None:
        """Tell the load as it was at ``report_at``, and say when the next one is due: once an interval at
        most, and after a step."""
        at, run, scheduler = self.report_at, self._run, self.scheduler
        if run is not None:
            if self._listener.last_only and scheduler.handoffs_in == self._told_handoffs:
                at = self._last_report(at, instant, delay_s)
            self._roll(run, at, inclusive=True)
        self._told_handoffs = scheduler.handoffs_in
        self._reported_at = at
        self._listener.loaded(self, scheduler.metrics(self._last_step_ms), at)
        self.report_at = self._next_report(at)

    def _last_report(self, at: float, instant: float, delay_s: float) -> float:
        """Return when the last report is due that is heard before ``instant`` and before a run is over, if
        the one at ``at`` tells of the run."""
        ends, interval_s = self._ends, self._report_interval_s
        ended = bisect_right(ends, at, self._ended + 1) - 1
        while ended:
            later = max(ends[ended + 1], at + interval_s)
            if later + delay_s >= instant or later >= self._end_s:
                break
            at = later
            ended = bisect_right(ends, at, ended + 1) - 1
        return at

    def _next_report(self, at: float) -> float:
        """Return when to report after a report at ``at``."""
        if self._run is not None:
            ended = self._ends[self._ended + 1]
        elif self._plan is not None:
            ended = self._end_s
        else:
            return math.inf
        return max(ended, at + self._report_interval_s)
