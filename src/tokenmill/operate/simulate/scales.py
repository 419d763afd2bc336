"""Where the marks of an axis go, and how they are written. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

_LEAST: Final = 1e-12


class Axis(NamedTuple):
    """From ``low`` to ``high``; ``log``: by orders of magnitude."""

    low: float
    high: float
    ticks: list[float]
    log: bool = False

    def share(self, value: float) -> float:
        """Return where a value lies, 0 to 1; what is beyond an end lies there."""
        if self.log:
            value = max(value, self.low)
            place = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, place))


def linear_axis(values: Iterable[float], *, ticks: int = 5, tight: bool = False) -> Axis:
    """Return an axis from 0 to a round number above all values; ``tight``: to the largest itself."""
    high = max((value for value in values if math.isfinite(value)), default=0.0)
    if high <= _LEAST:
        high = 1.0
    rough = high / ticks
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * each for each in (1, 2, 2.5, 5, 10) if size * each >= rough * 0.999)
    count = math.floor(high / step + 1e-9) if tight else math.ceil(high / step - 1e-9)
    marks = [step * index for index in range(count + 1)]
    return Axis(0.0, high if tight else marks[-1], marks)


def log_axis(values: Iterable[float]) -> Axis:
    """Return an axis over all values above 0, in steps of 1, 2 and 5; what is less than a hundred
    millionth of the largest lies at its low end."""
    positive = [value for value in values if value > _LEAST and math.isfinite(value)]
    if not positive:
        return Axis(1.0, 10.0, [1.0, 2.0, 5.0, 10.0], log=True)
    low, high = _mark_below(max(min(positive), max(positive) * 1e-8)), _mark_above(max(positive))
    if high <= low:
        high = low * 10
    marks = [mark for mark in _marks(low, high) if low * 0.999 <= mark <= high * 1.001]
    if len(marks) > 9:
        marks = [mark for mark in marks if abs(math.log10(mark) - round(math.log10(mark))) < 1e-6]
    return Axis(low, high, marks, log=True)


def _marks(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    return [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]


def _mark_below(value: float) -> float:
    return max(mark for mark in _marks(value, value) if mark <= value * 1.0001)


def _mark_above(value: float) -> float:
    return min(mark for mark in _marks(value, value * 10) if mark >= value * 0.9999)


def number_words(value: float) -> str:
    """Write a number as short as it can be read: 1500 as 1,500, 2000000 as 2M."""
    if value >= 1_000_000:
        return f"{value / 1_000_000:.3g}M"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def share_words(value: float) -> str:
    """Write a share in percent."""
    return f"{value * 100:.3g}%"
