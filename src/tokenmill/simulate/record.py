"""What a simulated run leaves behind: one entry a request, gaps between tokens, and samples of each stage.

Exists so that reports, benchmarks and tests read one thing. It must not know how the run came about.

Memory: some 250 bytes a request, some 100 bytes a stage and sample (samples thin out: see ``StageRecord``),
and gaps as a histogram of a few hundred bins, however many tokens there were.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec

from tokenmill.protocol.ids import Role

SERVED: Final = "served"
REFUSED: Final = "refused"

BINS_PER_OCTAVE: Final = 128
"""Gaps of one bin differ by at most 0.55 %."""


_NO_GAP: Final = -1_000_000
"""The bin of gaps of no length."""


class RequestRecord(msgspec.Struct, kw_only=True, gc=False):
    """What one request saw. Times in seconds since the trace's start.

    ``klass``: the trace's class or tenant, or empty. ``first_s``, ``last_s``: when its first and last token
    left the worker; 0 without any. ``cached_tokens``: prompt tokens found in a cache by the worker that did
    the prefill, at its first attempt. ``prefill_worker``: who computed the prompt; ``decode_worker``: who
    generated (the same one where both were done in one place). ``outcome``: "served" or "refused", then
    ``reason`` says why. ``attempts``: workers, or pairs of them, that it was given.
    """

    number: int
    arrived_s: float
    prompt_tokens: int
    klass: str = ""
    first_s: float = 0.0
    last_s: float = 0.0
    cached_tokens: int = 0
    output_tokens: int = 0
    prefill_worker: str = ""
    decode_worker: str = ""
    outcome: str = REFUSED
    reason: str = ""
    attempts: int = 0

    @property
    def served(self) -> bool:
        """All tokens that were asked for came."""
        return self.outcome == SERVED

    @property
    def ttft_ms(self) -> float:
        """From arrival to the first token, milliseconds."""
        return (self.first_s - self.arrived_s) * 1000

    @property
    def tpot_ms(self) -> float | None:
        """Mean time between tokens, milliseconds; None for less than two tokens."""
        if self.output_tokens < 2:
            return None
        return (self.last_s - self.first_s) * 1000 / (self.output_tokens - 1)

    @property
    def whole_ms(self) -> float:
        """From arrival to the last token, milliseconds."""
        return (self.last_s - self.arrived_s) * 1000


class GapHistogram:
    """Times between two tokens of a request, by their logarithm: quantiles are right to 0.3 %, count, mean
    and largest exactly. ``total_s``: the sum of all, set at the end of a run from the requests' first and
    last tokens, so that it does not depend on the order of additions."""

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0
        self.most_s = 0.0
        self._bins: dict[int, int] = {}

    def add(self, gap_s: float, times: int = 1) -> None:
        """Count ``times`` gaps of ``gap_s`` seconds."""
        at = math.floor(math.log2(gap_s) * BINS_PER_OCTAVE) if gap_s > 0 else _NO_GAP
        self._bins[at] = self._bins.get(at, 0) + times
        self.count += times
        self.most_s = max(self.most_s, gap_s)

    def add_steps(self, steps_ms: list[float], times: int) -> None:
        """Count ``times`` gaps for each of ``steps_ms``."""
        first = steps_ms[0]
        if steps_ms.count(first) == len(steps_ms):
            self.add(first / 1000, times * len(steps_ms))
        else:
            for step_ms in steps_ms:
                self.add(step_ms / 1000, times)

    @property
    def mean_ms(self) -> float:
        """Mean gap, milliseconds; 0 without any."""
        return self.total_s / self.count * 1000 if self.count else 0.0

    def quantile_ms(self, share: float) -> float:
        """Return the gap, milliseconds, below which ``share`` (0 to 1) of all gaps lie, interpolated between
        its neighbours; 0 without any."""
        if not self.count:
            return 0.0
        place = share * (self.count - 1)
        low = math.floor(place)
        low_s, high_s = self._at_rank(low), self._at_rank(min(low + 1, self.count - 1))
        return (low_s + (high_s - low_s) * (place - low)) * 1000

    def _at_rank(self, rank: int) -> float:
        """Return the gap, seconds, that ``rank`` others are smaller than."""
        seen = 0
        for at in sorted(self._bins):
            here = self._bins[at]
            if seen + here > rank:
                if at <= _NO_GAP:
                    return 0.0
                return min(self.most_s, 2 ** ((at + (rank - seen + 0.5) / here) / BINS_PER_OCTAVE))
            seen += here
        return self.most_s

    def bins_ms(self) -> list[tuple[float, int]]:
        """Return (lower bound in milliseconds, count) of all bins that have any, the smallest first."""
        return [
            (0.0 if at <= _NO_GAP else 2 ** (at / BINS_PER_OCTAVE) * 1000, self._bins[at])
            for at in sorted(self._bins)
        ]

    def state(self) -> tuple[int, float, tuple[tuple[int, int], ...]]:
        """Return all that it holds, for comparing two runs."""
        return self.count, self.most_s, tuple(sorted(self._bins.items()))


class StageSample(NamedTuple):
    """A stage at one moment. ``workers``: those that may be chosen. ``busy_share``: of their time since the
    sample before, spent in steps. ``queued``, ``running``: sequences in all of them. ``kv_share``: held
    blocks, of all."""

    at_s: float
    workers: int
    busy_share: float
    queued: int
    running: int
    kv_share: float


class StageRecord(msgspec.Struct, kw_only=True):
    """One stage's run. ``samples`` are evenly spaced in time; their number stays below 2,000, since every
    second one is dropped and the spacing doubled when there are so many. ``worker_s``: seconds that workers
    were there, starting ones included (what is paid for), ``busy_s``: seconds of steps. Token counts are of
    all its workers, those that failed included."""

    name: str
    role: Role
    device: str = ""
    samples: list[StageSample] = []
    worker_s: float = 0.0
    busy_s: float = 0.0
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    preemptions: int = 0


class LoggedEvent(NamedTuple):
    """Something that happened to the plant, in words."""

    at_s: float
    what: str


class RunRecord(msgspec.Struct, kw_only=True):
    """A whole run. ``requests``: in the order of arrival. ``gaps``: between tokens of a request. ``queued``:
    (seconds, requests) that waited in front of the workers, sampled as stages are. ``makespan_s``: from the
    first arrival to the last token. ``handoffs``: caches that arrived; ``handoffs_failed``: that were lost.
    ``migrations``: requests that went on elsewhere after their worker had failed. ``steps``: of all engines.
    """

    requests: list[RequestRecord]
    gaps: GapHistogram
    stages: list[StageRecord]
    queued: list[tuple[float, int]] = []
    events_log: list[LoggedEvent] = []
    makespan_s: float = 0.0
    handoffs: int = 0
    handoffs_failed: int = 0
    handoff_bytes: float = 0.0
    migrations: int = 0
    steps: int = 0
    seed: int = 0
