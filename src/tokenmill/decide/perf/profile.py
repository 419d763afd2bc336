"""A measured profile: what one engine on one machine took for steps of known work, and what follows from it.

Exists so that plans, simulations and batching go by what was measured. It must not read files or measure.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from tokenmill.decide.perf.table import StepTable

PROFILE_KIND: Final = "Profile"

Method = Literal["steps", "arrivals"]
"""steps: the engine said how long each step took; arrivals: seen from outside, by when tokens came."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """Steps of one kind of work. Work as in ``StepTimeModel``; ``step_ms`` is the median of ``repeats``
    steps, ``low_ms`` to ``high_ms`` holds the middle eight tenths of them."""

    new_tokens: float
    prefill_context: float
    sequences: float
    decode_context: float
    step_ms: float
    low_ms: float
    high_ms: float
    repeats: int


class Knee(msgspec.Struct, frozen=True, kw_only=True):
    """The smallest prefill batch that saturates the device, in tokens: ``tokens``, and with nine chances in
    ten from ``low`` to ``high``. ``tokens_per_s``: the device's rate there. ``reached``: the sweep went far
    enough to see it; else the device may saturate later."""

    tokens: int
    low: int
    high: int
    tokens_per_s: float
    reached: bool = True


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """How well the table says what was measured: shares of the measured time."""

    mean_error: float
    p90_error: float
    measurements: int


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured. ``gpu``: the device's own name; "" without one."""

    cpu: str = ""
    cores: int = 0
    memory_gib: float = 0.0
    gpu: str = ""
    gpus: int = 0
    system: str = ""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. ``disturbed``: other programs ran beside, so that not medians but the lower tenths of times
    were fitted. ``model``: as it was given; ``versions``: of what took part; ``dtype``: of the weights;
    ``gpu``: a catalogue's name, where it is one; ``taken``: the day, in ISO 8601. ``between_steps_ms``: from
    a step's end to the next one's start, while there is work; in no step's time, and 0 where the method does
    not tell it apart."""

    model: str
    engine: str
    machine: Machine
    versions: dict[str, str]
    method: Method
    measurements: list[Measurement]
    table: StepTable
    knee: Knee
    fit: Fit
    taken: str
    dtype: str = ""
    gpu: str = ""
    disturbed: bool = False
    between_steps_ms: float = 0.0
    tp: int = 1
    pp: int = 1
    dp: int = 1
    ep: int = 1
    api_version: Literal["tokenmill/v1"] = msgspec.field(default="tokenmill/v1", name="apiVersion")
    kind: Literal["Profile"] = PROFILE_KIND
