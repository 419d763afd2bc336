"""The step times of all workers: equal workers learn together, and each has a pace of its own.

Exists so that a decode worker that never did a prefill, and a replica that has just come, are predicted from
what their like have shown; learning alone, a worker that is wrongly thought slow would never be tried. It
must not know routes or roles.
"""

from __future__ import annotations

from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.corrected import CorrectedStepTime
from tokenmill.decide.perf.online import OnlineStepTime, Steps
from tokenmill.decide.perf.regression import Features, Prior, Regression
from tokenmill.decide.perf.step_time import LinearStepTime, StepTimeModel
from tokenmill.decide.perf.transfer_time import OnlineTransferTime
from tokenmill.protocol.ids import WorkerId
from tokenmill.protocol.metrics import StepMetrics

CLASS_STEPS = 32
"""Steps that a class learns before its workers' own paces are looked at: what all have in common is its
own."""

PACE_NOISE_MS = 0.05

OWN_TRANSFERS = 8
"""Reports of a worker's own transfers until they count instead of its class's: links differ by place."""

LEAST_PACE = 0.1
"""No worker is ten times as fast as its class: a smaller pace is the class's curve being off at one place."""

_PACES = Prior(
    (1.0, 1.0),
    own_sd=(0.5, 0.5),
    floor_sd=(0.0, 0.0),
    kinship=((1.0, 0.0), (0.0, 1.0)),
    least=LEAST_PACE,
)


ClassSteps = OnlineStepTime | CorrectedStepTime
"""What a class has in common: learned from a guess, or trusted and corrected."""


class WorkerTimes:
    """One worker's times, a ``StepTimeModel``: its class's decodes at its pace of decoding, and what prompts
    add to them at its pace of prefill. Two paces, since devices differ in memory and in arithmetic."""

    def __init__(self, steps: ClassSteps, transfers: OnlineTransferTime) -> None:
        self._steps = steps
        self._class_transfers = transfers
        self._transfers = OnlineTransferTime()
        self._seen = Steps()
        self._paces = Regression(_PACES, absolute_noise=PACE_NOISE_MS)
        self._weights = self._paces.weights

    @property
    def pace(self) -> float:
        """This worker's time for a prompt over its class's."""
        return self._paces.weights[1]

    @property
    def of_class(self) -> object:
        """What the workers of one class have in common: the same object for all of them."""
        return self._steps

    @property
    def decode_pace(self) -> float:
        """This worker's time for a decode step over its class's."""
        return self._paces.weights[0]

    @property
    def samples(self) -> int:
        """Steps that the class has learned from."""
        return self._steps.samples

    def observe(self, metrics: StepMetrics) -> None:
        """Learn from the worker's report."""
        if self._transfers.observe(metrics):
            self._class_transfers.learn_last_of(self._transfers)
        if not self._seen.is_new(metrics):
            return
        class_ms, work = self._work(metrics)
        own_ms = self._paces.predict(work)
        if self._steps.samples < CLASS_STEPS or own_ms <= 0 or class_ms <= 0:
            self._steps.learn(metrics, metrics.step_ms)
            return
        self._steps.learn(metrics, metrics.step_ms * class_ms / own_ms)
        # What the class did not know before is not this worker's pace: so the class is asked anew.
        _, work = self._work(metrics)
        self._paces.learn(work, metrics.step_ms)

    def _work(self, metrics: StepMetrics) -> tuple[float, Features]:
        class_ms, decode_ms = self._parts(
            metrics.prefill_tokens,
            metrics.prefill_context_tokens,
            metrics.decode_tokens,
            metrics.decode_context_tokens,
        )
        return class_ms, _parted(class_ms, decode_ms)

    def prefill_ms(self, new_tokens: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(new_tokens, context_tokens, 0, 0)

    def decode_ms(self, sequences: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(0, 0, sequences, context_tokens)

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """See ``StepTimeModel``."""
        class_ms, decode_ms = self._parts(new_tokens, prefill_context, sequences, decode_context)
        decode_pace, prefill_pace = self._weights
        return decode_pace * decode_ms + prefill_pace * (class_ms - decode_ms)

    def _parts(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> tuple[float, float]:
        """Return the class's time for a step, and for its decodes alone (0 without any)."""
        class_ms = self._steps.mixed_ms(new_tokens, prefill_context, sequences, decode_context)
        if not sequences:
            return class_ms, 0.0
        if not new_tokens:
            return class_ms, class_ms
        return class_ms, min(class_ms, self._steps.mixed_ms(0, 0, sequences, decode_context))

    @property
    def kv_bytes_per_token(self) -> float:
        """See ``StepTimeModel``."""
        return self._steps.kv_bytes_per_token

    @property
    def kv_capacity_tokens(self) -> int:
        """See ``StepTimeModel``."""
        return self._steps.kv_capacity_tokens

    def transfer_ms(self, tokens: float, link: Link | None = None) -> float:
        """Return how long fetching the KV of ``tokens`` tokens takes this worker, milliseconds: as measured,
        unless ``link`` says over what."""
        if link is not None:
            return self._steps.transfer_ms(tokens, link)
        known = self._transfers if self._transfers.samples >= OWN_TRANSFERS else self._class_transfers
        return known.transfer_ms(tokens)


def _parted(class_ms: float, decode_ms: float) -> Features:
    return (0, decode_ms), (1, class_ms - decode_ms)


class StepTimes:
    """Times of every worker. Memory: constant for each worker and for each class that was ever seen here."""

    def __init__(self) -> None:
        self._workers: dict[WorkerId, WorkerTimes] = {}
        self._classes: dict[str, tuple[ClassSteps, OnlineTransferTime]] = {}

    def joined(
        self,
        worker: WorkerId,
        device_class: str,
        prior: LinearStepTime | None = None,
        trusted: StepTimeModel | None = None,
    ) -> WorkerTimes:
        """A worker came. ``device_class``: equal for workers that should be equally fast (device, model,
        engine). ``prior``: the guess for a class that is new, ``trusted``: times that were measured before,
        which are only corrected. A class that is known keeps its times."""
        known = self._workers.get(worker)
        if known is not None:
            return known
        if device_class not in self._classes:
            steps = OnlineStepTime(prior) if trusted is None else CorrectedStepTime(trusted)
            self._classes[device_class] = (steps, OnlineTransferTime())
        times = self._workers[worker] = WorkerTimes(*self._classes[device_class])
        return times

    def left(self, worker: WorkerId) -> None:
        """A worker is gone; its class remembers."""
        self._workers.pop(worker, None)

    def observe(self, worker: WorkerId, metrics: StepMetrics) -> None:
        """A worker reported; one that has not joined is ignored."""
        times = self._workers.get(worker)
        if times is not None:
            times.observe(metrics)

    def of(self, worker: WorkerId) -> WorkerTimes | None:
        """Return a worker's times; they follow what is learned later."""
        return self._workers.get(worker)
