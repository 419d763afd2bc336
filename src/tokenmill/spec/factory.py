"""The factory file's types: what a person declares, and what every tool of the house reads.

The same file runs on one machine, on Kubernetes and in the simulator. Knows nothing of YAML.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from tokenmill.spec.front import Admission, Frontend, Migration, Router
from tokenmill.spec.parts import Above0, Name, Part
from tokenmill.spec.stage import Stage

API_VERSION: Final = "tokenmill/v1"
KIND: Final = "Factory"

PlannerMode = Literal["off", "advise", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
ToolParser = Literal["auto", "none", "hermes", "llama3_json", "mistral", "pythonic"]


class Metadata(Part, frozen=True, kw_only=True):
    """Who this factory is."""

    name: Name
    """Names the factory on this machine (its state folder) and on a cluster:
    lower-case letters, digits, '-'."""


class Model(Part, frozen=True, kw_only=True):
    """What is served."""

    name: str = ""
    """The name that clients use; empty: the folder's name. Of a model behind ``engine: openai`` empty: every
    model that its server lists, by the server's names."""

    path: str = ""
    """Checkpoint folder in Hugging Face format, or a hub id; a relative folder is seen from this file.
    Empty: the small model that ships with the package. Of a model behind ``engine: openai``: what its server
    calls it; empty: the same as clients do."""

    tool_parser: ToolParser = "auto"
    """How it writes tool calls: hermes (Qwen, too), llama3_json, mistral, pythonic, none (calls stay text),
    or auto: as its chat template shows. Of a model behind ``engine: openai`` its server knows that."""


class Slo(Part, frozen=True, kw_only=True):
    """What clients are promised; plans and reports measure against it."""

    ttft_ms: Above0 = 500.0
    """Time to the first token, in milliseconds: what a person takes for an instant answer."""

    itl_ms: Above0 = 50.0
    """Time between tokens, in milliseconds: 20 tokens a second, faster than people read."""

    percentile: Annotated[float, Meta(gt=0, le=100)] = 95.0
    """The share of requests, in percent, that must be within both."""


class Planner(Part, frozen=True, kw_only=True):
    """Whether the factory scales itself. It does not yet: stages keep their ``replicas`` until `tokenmill
    scale` or `tokenmill up` changes them, whatever stands here."""

    mode: PlannerMode = "off"
    """off, advise (say what it would do) or auto (do it); read, and not acted on yet."""


class Log(Part, frozen=True, kw_only=True):
    """What the processes write to their logs."""

    level: LogLevel = "info"
    """The least important line that is written."""

    format: LogFormat = "text"
    """text for people, json for machines."""


class Factory(Part, frozen=True, kw_only=True):
    """One factory: its models, their front door, and the stages that make their tokens."""

    api_version: Literal["tokenmill/v1"] = msgspec.field(default=API_VERSION, name="apiVersion")
    """The file format's version."""

    kind: Literal["Factory"] = KIND
    """What the file declares."""

    metadata: Metadata
    """Who this factory is."""

    model: Model = field(default_factory=Model)
    """What is served, where it is one model."""

    models: list[Model] = field(default_factory=list)
    """What is served, where it is several models behind one front door, in place of ``model``; each stage
    then names its own."""

    slo: Slo = field(default_factory=Slo)
    """What clients are promised."""

    frontend: Frontend = field(default_factory=Frontend)
    """The front door."""

    router: Router = field(default_factory=Router)
    """How requests find their workers."""

    admission: Admission = field(default_factory=Admission)
    """What happens to requests while all workers are busy."""

    migration: Migration = field(default_factory=Migration)
    """What happens to running requests whose worker goes."""

    stages: list[Stage]
    """The groups of workers."""

    planner: Planner = field(default_factory=Planner)
    """Whether the factory scales itself; not yet."""

    log: Log = field(default_factory=Log)
    """What the processes write to their logs."""
