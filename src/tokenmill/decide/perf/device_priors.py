"""What is guessed of a device before it has shown its times: scaled from one model by data-sheet numbers.

Exists so that a router's first choices in a mixed factory already prefer the faster device. Measured times
replace it within a few steps, so that the guess need be no better than a factor of two. It must not know
models: their size is the common scale that the first measured step sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from tokenmill.decide.perf.step_time import LinearStepTime


class Device(NamedTuple):
    """Dense bfloat16 rate in TFLOP/s and memory bandwidth in TB/s, from the maker's data sheet."""

    tflops: float
    tb_per_s: float


DEVICES: Final[Mapping[str, Device]] = MappingProxyType(
    {
        "a10g": Device(70, 0.6),
        "a30": Device(165, 0.93),
        "a100": Device(312, 2.0),
        "b200": Device(2250, 8.0),
        "b300": Device(2500, 8.0),
        "cpu": Device(2, 0.2),
        "gb200": Device(2500, 8.0),
        "gb300": Device(2500, 8.0),
        "h100": Device(989, 3.35),
        "h200": Device(989, 4.8),
        "l4": Device(121, 0.3),
        "l40s": Device(362, 0.864),
        "mi300x": Device(1307, 5.3),
    }
)
"""By name in lower case."""

_REFERENCE: Final = "h100"


def step_time_of(device: str) -> LinearStepTime:
    """Return the guess for a device named like "H100", "h100_sxm" or "NVIDIA A100-SXM4-80GB"; one that is
    not known is taken for an H100."""
    words = re.split(r"[^a-z0-9]+", device.lower())
    found = next((DEVICES[word] for word in words if word in DEVICES), DEVICES[_REFERENCE])
    compute = DEVICES[_REFERENCE].tflops / found.tflops
    memory = DEVICES[_REFERENCE].tb_per_s / found.tb_per_s
    guess = LinearStepTime()
    return LinearStepTime(
        fixed_ms=guess.fixed_ms * memory,
        prefill_token_ms=guess.prefill_token_ms * compute,
        prefill_context_ms=guess.prefill_context_ms * compute,
        decode_sequence_ms=guess.decode_sequence_ms * compute,
        decode_context_ms=guess.decode_context_ms * memory,
    )
