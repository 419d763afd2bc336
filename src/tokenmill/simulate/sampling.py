"""Looks at every stage now and then, for curves over time.

It must not know requests or why a worker does what it does.
"""

from __future__ import annotations

from typing import Final

from tokenmill.simulate.record import StageRecord, StageSample
from tokenmill.simulate.workforce import StageCrew

MOST_SAMPLES: Final = 2000


class Sampler:
    """``interval_s``: between two looks; doubles, and every second sample is dropped, when there are
    ``MOST_SAMPLES``. ``queued``: in front of the workers."""

    def __init__(self, crews: list[StageCrew], interval_s: float) -> None:
        self.interval_s = interval_s
        self.queued: list[tuple[float, int]] = []
        self.samples: list[list[StageSample]] = [[] for _ in crews]
        self._crews = crews
        self._seen = [(0.0, 0.0) for _ in crews]  # busy and worker seconds so far

    def look(self, now: float, queued: int) -> None:
        """Take a sample of everything."""
        self.queued.append((now, queued))
        for at, crew in enumerate(self._crews):
            self.samples[at].append(self._sample(at, crew, now))
        if len(self.queued) >= MOST_SAMPLES:
            self.interval_s *= 2
            self.queued = self.queued[1::2]
            self.samples = [samples[1::2] for samples in self.samples]

    def _sample(self, at: int, crew: StageCrew, now: float) -> StageSample:
        queued = running = used = total = 0
        for worker in crew.present:
            load = worker.scheduler.load
            queued += load.waiting
            running += load.running
            used += load.kv_blocks_used
            total += worker.stage.batching.total_blocks
        busy_s, there_s = seconds_of(crew, now)
        seen_busy_s, seen_there_s = self._seen[at]
        self._seen[at] = busy_s, there_s
        passed_s = there_s - seen_there_s
        return StageSample(
            at_s=now,
            workers=sum(worker.ready and not worker.draining for worker in crew.present),
            busy_share=(busy_s - seen_busy_s) / passed_s if passed_s > 0 else 0.0,
            queued=queued,
            running=running,
            kv_share=used / total if total else 0.0,
        )


def seconds_of(crew: StageCrew, now: float) -> tuple[float, float]:
    """Return the seconds that a stage's workers were in steps, and that they were there."""
    busy_s = sum([worker.busy_s(now) for worker in (*crew.past, *crew.present)])
    there_s = crew.past_worker_s + sum([now - worker.there_since for worker in crew.present])
    return busy_s, there_s


def stage_record(crew: StageCrew, samples: list[StageSample], now: float) -> StageRecord:
    """Sum a stage up."""
    busy_s, there_s = seconds_of(crew, now)
    workers = [*crew.past, *crew.present]
    totals = [worker.scheduler.metrics(0.0) for worker in workers]
    return StageRecord(
        name=crew.stage.name,
        role=crew.stage.role,
        device=crew.stage.device,
        samples=samples,
        worker_s=there_s,
        busy_s=busy_s,
        steps=sum(worker.steps for worker in workers),
        prefill_tokens=sum(each.prefill_tokens_total for each in totals),
        decode_tokens=sum(each.decode_tokens_total for each in totals),
        preemptions=sum(each.preemptions_total for each in totals),
    )
