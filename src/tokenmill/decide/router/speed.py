"""How fast the workers of one class compute prompts, in the cost function's few numbers.

Exists because the cost function takes a line where the step times that were learned are a curve, and because
the router treats workers of equal speed as one: so a speed is rounded, and changes seldom. It must not know
requests.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import msgspec

from tokenmill.decide.perf.class_times import WorkerTimes
from tokenmill.decide.router.cost import DeviceSpeed
from tokenmill.protocol.card import WorkerCard

LEAST_SAMPLES: Final = 8
"""Steps to be seen before the guess of ``DeviceSpeed`` is given up."""

REFRESH_SAMPLES: Final = 64
"""Further steps of the class before its speed is derived anew."""

PACE_STEP: Final = math.log(1.1)
"""Workers of one class whose paces differ by less than a tenth count as equally fast."""

NEAR_TOKENS, FAR_TOKENS = 512, 4096
"""The line goes through the times of prompts of these lengths: where most are."""

_CONTEXT_TOKENS = 1_000_000


def device_class(card: WorkerCard) -> str:
    """Return what equally fast workers have in common: model, engine and, where they tell them, the times
    of their steps, whatever their stage."""
    told = ""
    if card.step_table is not None:
        told = hashlib.blake2s(msgspec.msgpack.encode(card.step_table), digest_size=8).hexdigest()
    return f"{card.engine}|{card.model}|{told}"


class ClassSpeed:
    """Follows one class's learned step times."""

    def __init__(self) -> None:
        self._speed = DeviceSpeed()
        self._samples = 0
        self._due = LEAST_SAMPLES
        self._version = 0
        self._paced: dict[int, DeviceSpeed] = {}

    def version(self, times: WorkerTimes) -> tuple[int, float]:
        """Return what ``of`` depends on but for ``last``: while it is the same, so is the speed."""
        samples = times.samples
        if samples >= self._due or samples < LEAST_SAMPLES:
            return -1 - samples, 0.0
        return self._version, times.pace

    def of(self, times: WorkerTimes, last: DeviceSpeed) -> DeviceSpeed:
        """Return the speed of the worker with these times; ``last``: what was returned for it before."""
        if times.samples >= self._due:
            self._due = times.samples + REFRESH_SAMPLES
            self._follow(_line(times))
        if times.samples < LEAST_SAMPLES:
            return self._speed
        steps = math.log(times.pace) / PACE_STEP
        for near in (math.floor(steps), math.ceil(steps)):
            if abs(steps - near) < 0.75 and self._scaled(near) is last:
                return last  # at the border of two paces it stays with the one it had
        return self._scaled(round(steps))

    def _follow(self, speed: DeviceSpeed) -> None:
        if speed != self._speed:
            self._speed = speed
            self._version += 1
            self._paced.clear()

    def _scaled(self, step: int) -> DeviceSpeed:
        scaled = self._paced.get(step)
        if scaled is None:
            pace = math.exp(step * PACE_STEP)
            scaled = self._paced[step] = DeviceSpeed(*(part * pace for part in self._speed))
        return scaled


def _line(times: WorkerTimes) -> DeviceSpeed:
    """Return the line through two prompts' times, for a pace of 1, rounded to a few percent."""
    near_ms = times.mixed_ms(NEAR_TOKENS, 0, 0, 0)
    far_ms = times.mixed_ms(FAR_TOKENS, 0, 0, 0)
    token_ms = max(0.0, far_ms - near_ms) / (FAR_TOKENS - NEAR_TOKENS)
    context_ms = (times.mixed_ms(NEAR_TOKENS, _CONTEXT_TOKENS, 0, 0) - near_ms) / _CONTEXT_TOKENS
    fixed_ms = max(0.0, near_ms - NEAR_TOKENS * token_ms)
    return DeviceSpeed(*(_rounded(part / times.pace) for part in (fixed_ms, token_ms, context_ms)))


def _rounded(value: float) -> float:
    return float(f"{max(0.0, value):.2g}")
