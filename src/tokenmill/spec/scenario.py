"""The scenario file's types: what a simulated factory meets. Load, mishaps, start-up times, classes, prices.

What the factory is stands in the factory file; the scenario says what happens to it. Knows nothing of YAML.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from tokenmill.spec.factory import Slo
from tokenmill.spec.parts import Above0, AtLeast0, AtLeast0Float, Name, Part
from tokenmill.spec.stage import Price

SCENARIO_KIND: Final = "Scenario"


class ScenarioMetadata(Part, frozen=True, kw_only=True):
    """Which scenario this is."""

    name: Name
    """Names the scenario in reports: lower-case letters, digits, '-'."""


class Failure(Part, frozen=True, kw_only=True):
    """A worker dies; its requests go on elsewhere, as the factory's `migration` says."""

    at_s: AtLeast0Float
    """When, in seconds from the start."""

    stage: str
    """Its stage."""

    worker: AtLeast0 = 0
    """Its number in the stage, from 0."""

    back_after_s: AtLeast0Float | None = None
    """After so many seconds it is started anew, with an empty cache; not given: it stays away."""


class Straggler(Part, frozen=True, kw_only=True):
    """A worker is slow for a while."""

    at_s: AtLeast0Float
    """From when on, in seconds from the start."""

    until_s: Above0
    """Until when."""

    stage: str
    """Its stage."""

    worker: AtLeast0 = 0
    """Its number in the stage, from 0."""

    factor: Annotated[float, Meta(ge=1)] = 2.0
    """How many times as long its steps take."""


class Scaling(Part, frozen=True, kw_only=True):
    """A stage is given another number of workers: new ones come up in `start_s`, others are drained."""

    at_s: AtLeast0Float
    """When, in seconds from the start."""

    stage: str
    """Which stage."""

    workers: AtLeast0
    """How many workers it is to have."""


class SlowLink(Part, frozen=True, kw_only=True):
    """The network is slow for a while."""

    at_s: AtLeast0Float
    """From when on, in seconds from the start."""

    until_s: Above0
    """Until when."""

    host: str = ""
    """Whose link, as the report names hosts; empty: all of them."""

    factor: Annotated[float, Meta(ge=1)] = 2.0
    """By what its bandwidth is divided."""


class Events(Part, frozen=True, kw_only=True):
    """What happens while the trace runs."""

    failures: list[Failure] = field(default_factory=list)
    """Workers that die."""

    stragglers: list[Straggler] = field(default_factory=list)
    """Workers that are slow."""

    scaling: list[Scaling] = field(default_factory=list)
    """Stages that are given other numbers of workers."""

    slow_links: list[SlowLink] = field(default_factory=list)
    """Networks that are slow."""


class StageSetting(Part, frozen=True, kw_only=True):
    """What of a stage only a simulation needs to be told."""

    start_s: AtLeast0Float | None = None
    """How long a new worker takes to come up, in seconds; not given: the scenario's."""

    dollars_per_hour: AtLeast0Float | None = None
    """Price of one worker; not given: that of its GPUs."""

    hosts: list[str] = field(default_factory=list)
    """The machines of its workers: worker i is on ``hosts[i % len]``. Empty: as the GPUs fill servers."""


class LinkSetting(Part, frozen=True, kw_only=True):
    """A way for KV caches between two workers."""

    gb_per_s: Above0
    """GB/s in one direction, shared by the transfers that are under way at a time."""

    latency_ms: AtLeast0Float = 1.0
    """Before the first byte, in milliseconds."""


class Links(Part, frozen=True, kw_only=True):
    """Links in place of those that the catalogue or the fleet file say."""

    between_hosts: LinkSetting | None = None
    """What one machine's network carries, in and out."""

    same_host: LinkSetting | None = None
    """Between workers of one machine."""


class RequestClass(Part, frozen=True, kw_only=True):
    """Requests of one kind: those that the trace calls so, or a share of those that it does not name."""

    name: Name
    """What the trace and the report call it."""

    share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Of the requests that the trace gives no class, so many are of this one, drawn by the seed."""

    priority: Annotated[int, Meta(ge=-100, le=100)] = 0
    """Their priority while all workers are busy, unless the trace says one."""

    tenant: str = ""
    """Whose they are, unless the trace says it; `admission.tenant_weights` of the factory file names
    tenants."""

    slo: Slo | None = None
    """What they are promised; not given: as all."""

    price: Price | None = None
    """What a million of their tokens is sold for; then the report sets income beside cost."""


class Scenario(Part, frozen=True, kw_only=True):
    """What a simulated factory meets."""

    api_version: Literal["tokenmill/v1"] = msgspec.field(default="tokenmill/v1", name="apiVersion")
    """The file format's version."""

    kind: Literal["Scenario"] = SCENARIO_KIND
    """What the file declares."""

    metadata: ScenarioMetadata
    """Which scenario this is."""

    trace: str = ""
    """A trace file (a relative path is seen from this file), or a kind of load such as
    `poisson:rate=5,prompt=3000,output=150,seconds=600`; the command line goes first."""

    speedup: Above0 = 1.0
    """All arrivals so many times as dense."""

    limit: AtLeast0 = 0
    """Only the first so many requests; 0: all."""

    start_at_s: AtLeast0Float = 0.0
    """The trace from this second on, before ``speedup``."""

    end_at_s: AtLeast0Float = 0.0
    """The trace before this second, before ``speedup``; 0: to its end."""

    seed: AtLeast0 = 0
    """Of all that is drawn: made-up traces, classes, the router's ties."""

    slo: Slo | None = None
    """The service level to judge by; not given: the factory's."""

    start_s: AtLeast0Float = 60.0
    """How long a new worker takes to come up, in seconds: a server that loads weights from a disk."""

    front_ms: AtLeast0Float = 0.0
    """What the way between a client and the worker's queue and back (HTTP, tokenizing, routing, messages)
    adds to each request's first token and end, in milliseconds: the time to the first token on an idle
    factory with `engine: sim, engine_args: {speedup: 0}`."""

    message_delay_ms: Above0 = 1.0
    """How long a message takes between frontend and worker, one way, in milliseconds: so much later the
    router knows of loads, and a decode worker of a cache that is offered to it."""

    stages: dict[str, StageSetting] = field(default_factory=dict)
    """Settings of single stages, by name."""

    events: Events = field(default_factory=Events)
    """What happens while the trace runs."""

    links: Links = field(default_factory=Links)
    """Links in place of the known ones."""

    classes: list[RequestClass] = field(default_factory=list)
    """Kinds of requests that are told apart."""

    prices: dict[str, AtLeast0Float] = field(default_factory=dict)
    """Dollars for one GPU and hour, by GPU name, in place of the fleet's and the catalogue's."""
