"""When a worker that is there must be taken for lost: it is silent, or its engine stands still.

Exists so that the evidence stands in one place. What a worker says of itself decides: one that is only busy,
with however long a queue, reports several times a second. It must not know connections.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.protocol.metrics import StepMetrics

_REPORT_S = 0.5
"""A worker in which nothing happens reports at least so often; with room to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StallLimits:
    """``silence_s``: without any frame. ``step_s``: without the end of a step, with work to do. Seconds."""

    silence_s: float = 5.0
    step_s: float = 60.0


class StepWatch:
    """Looks at one worker's reports for an engine that stands still.

    Time alone is no evidence, since it may be this process that stood still: as many reports must have come
    as a worker makes in that time.
    """

    __slots__ = ("_limit_s", "_reports", "_since", "_step", "stuck")

    def __init__(self, limit_s: float) -> None:
        self.stuck = False
        """The engine stands still, as far as reported."""
        self._limit_s = limit_s
        self._step = -1
        self._since = 0.0
        self._reports = 0

    def reported(self, metrics: StepMetrics, now: float) -> None:
        """The worker told its load at ``now``, in seconds."""
        if metrics.step != self._step or not metrics.running:
            self._step = metrics.step
            self._since = now
            self._reports = 0
            self.stuck = False
            return
        self._reports += 1
        if now - self._since >= self._limit_s and self._reports * _REPORT_S >= self._limit_s:
            self.stuck = True
