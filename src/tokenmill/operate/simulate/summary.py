"""What a report says of one simulated run: the types behind terminal, JSON and HTML.

The JSON is these types as they stand; ``version`` goes up when a field changes its meaning. Times carry their
unit in their name; shares are 0 to 1. It must not know how anything was counted.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.plans import TokenPrices

VERSION: Final = 1


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Times of many, milliseconds. All 0 where there are none (``count``)."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    most: float


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """``ttft_ms``: arrival to first token. ``itl_ms``: between two tokens of a request, over all such pairs.
    ``tpot_ms``: a request's mean time between tokens. ``e2e_ms``: arrival to last token. Of requests that
    were served."""

    ttft_ms: Spread
    itl_ms: Spread | None
    tpot_ms: Spread
    e2e_ms: Spread


class Level(msgspec.Struct, frozen=True, kw_only=True):
    """How far the service level was kept. ``within``: the share of all requests, refused ones included, that
    were served with first token and mean time between tokens within the limits; ``late``, ``slow``: shares
    that missed the first, and the second. ``kept``: whether ``within`` is what was promised.
    ``goodput_per_s``: requests within, a second; ``goodput_tokens_per_s``: their output tokens."""

    slo: Promise
    within: float
    late: float
    slow: float
    kept: bool
    goodput_per_s: float
    goodput_tokens_per_s: float


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Over the whole run, its end (when the last requests run out) included. ``tokens_per_s_per_gpu``: output
    tokens; None without GPUs."""

    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float
    output_tokens_per_s_per_gpu: float | None
    gpus: float


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """Over time: lists of equal length. Seconds from the trace's start; see ``StageSample``."""

    at_s: list[float]
    workers: list[int]
    busy: list[float]
    queued: list[int]
    running: list[int]
    kv: list[float]


class StageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One stage. ``workers``: it began with. ``busy``: share of its workers' time spent in steps. ``kv``: of
    its KV blocks held on average. ``dollars``: for the time that its workers were there; None: no price is
    known. ``times_from``, ``expected_error``: of its step times."""

    name: str
    role: str
    device: str
    workers: int
    gpus_per_worker: int
    busy: float
    queued: float
    queued_most: int
    running: float
    kv: float
    kv_most: float
    steps: int
    prefill_tokens: int
    decode_tokens: int
    preemptions: int
    dollars: float | None
    dollars_per_hour: float | None
    times_from: str
    expected_error: float
    series: Series


class ClassSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one class ("" for those without). ``income``: what its tokens are sold for, where a price
    is set."""

    name: str
    requests: int
    served: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    latency: Latency
    level: Level
    income: float | None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What the run's workers cost, idle ones included. ``per_million``: dollars for a million tokens of each
    class of tokens, such that tokens times prices are ``dollars``. ``income``: of classes with a price."""

    dollars: float
    dollars_per_hour: float
    per_million: TokenPrices
    income: float | None


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to the plant."""

    at_s: float
    what: str


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """For charts: y over x, lists of equal length. What they are stands where the curve is named."""

    x: list[float]
    y: list[float]


class Charts(msgspec.Struct, frozen=True, kw_only=True):
    """``ttft_ms``, ``itl_ms``, ``e2e_ms``: x milliseconds, y the share of requests (itl: of gaps) that took
    no longer. The others by time of arrival, x seconds: ``arrivals`` requests a second, ``ttft_p50_ms`` and
    ``ttft_p95_ms``. ``waiting``: requests in front of the workers."""

    ttft_ms: Curve
    itl_ms: Curve
    e2e_ms: Curve
    arrivals: Curve
    ttft_p50_ms: Curve
    ttft_p95_ms: Curve
    waiting: Curve


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run. ``load``: the trace in words. ``offered_per_s``: requests a second that came."""

    version: int = VERSION
    factory: str
    scenario: str
    load: str
    seed: int
    requests: int
    served: int
    refused: dict[str, int]
    offered_per_s: float
    prompt_tokens: int
    output_tokens: int
    makespan_s: float
    prefix_hit: float
    latency: Latency
    level: Level
    throughput: Throughput
    stages: list[StageSummary]
    cost: Cost | None
    classes: list[ClassSummary]
    handoffs: int
    handoffs_failed: int
    local_prefills: int
    migrations: int
    steps: int
    wall_s: float
    events: list[Moment]
    charts: Charts
    notes: list[str]
