"""The factory file's types: what a person declares, and what every tool of the house reads.

The same file runs on one machine, on Kubernetes and in the simulator. Defaults that a process has as well
are taken from ``spec.process``, so that the two cannot drift. Knows nothing of YAML.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from tokenmill.protocol.ids import Role
from tokenmill.spec.process import FrontendConfig, WorkerConfig

API_VERSION: Final = "tokenmill/v1"
KIND: Final = "Factory"
NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
"""What Kubernetes takes as a name, because the same file runs there; it is a folder's name here."""

_FRONTEND: Final = FrontendConfig()
_WORKER: Final = WorkerConfig()

AtLeast0 = Annotated[int, Meta(ge=0)]
AtLeast1 = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Name = Annotated[str, Meta(pattern=NAME_PATTERN)]
Port = Annotated[int, Meta(ge=0, le=65535)]
RouterPolicy = Literal["kv", "least-loaded", "power-of-two", "round-robin", "random"]
PlannerMode = Literal["off", "advise", "auto"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class Part(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """What all parts of the file share: immutable, written without what is at its default."""


class Metadata(Part, frozen=True, kw_only=True):
    """Who this factory is."""

    name: Name
    """Names the factory on this machine (its state folder) and on a cluster:
    lower-case letters, digits, '-'."""


class Model(Part, frozen=True, kw_only=True):
    """What is served."""

    name: str = ""
    """The name that clients use; empty: the folder's name."""

    path: str = ""
    """Checkpoint folder in Hugging Face format, or a hub id; a relative folder is seen from this file.
    Empty: the small model that ships with the package."""


class Slo(Part, frozen=True, kw_only=True):
    """What clients are promised; the planner and the reports measure against it."""

    ttft_ms: Annotated[float, Meta(gt=0)] = 500.0
    """Time to the first token, in milliseconds: what a person takes for an instant answer."""

    itl_ms: Annotated[float, Meta(gt=0)] = 50.0
    """Time between tokens, in milliseconds: 20 tokens a second, faster than people read."""

    percentile: Annotated[float, Meta(gt=0, le=100)] = 95.0
    """The share of requests, in percent, that must be within both."""


class Frontend(Part, frozen=True, kw_only=True):
    """The front door."""

    port: Port = _FRONTEND.port
    """Port to listen on; on one machine replica i takes ``port + i``; 0: any free one."""

    host: str = _FRONTEND.host
    """Address to listen on; 0.0.0.0 opens the factory to the network."""

    replicas: AtLeast0 = 1
    """How many front doors."""

    max_body_bytes: AtLeast1 = _FRONTEND.max_body_bytes
    """Largest request body; a larger one is answered with 413."""

    max_prompt_tokens: AtLeast0 = _FRONTEND.max_prompt_tokens
    """Longest prompt; 0: what the model's context leaves."""

    max_output_tokens: AtLeast0 = _FRONTEND.max_output_tokens
    """Largest ``max_tokens``; 0: what the model's context leaves."""

    default_max_tokens: AtLeast0 = _FRONTEND.default_max_tokens
    """``max_tokens`` where a request names none; 0: 16 for completions, the rest of the context for chats."""

    max_header_bytes: AtLeast1 = _FRONTEND.max_header_bytes
    """Largest request head."""

    max_connections: AtLeast1 = _FRONTEND.max_connections
    """Most open client connections; further ones are refused with 503."""

    idle_timeout_s: Seconds = _FRONTEND.idle_timeout_s
    """How long a kept-alive connection may be silent, in seconds."""

    request_timeout_s: Seconds = _FRONTEND.request_timeout_s
    """Longest time a request may take, in seconds; then 504."""

    worker_wait_s: Seconds = _FRONTEND.worker_wait_s
    """How long a request waits for a worker to become ready before it gets 503, in seconds."""

    drain_timeout_s: Seconds = _FRONTEND.drain_timeout_s
    """How long a shutdown waits for running requests, in seconds."""


class Router(Part, frozen=True, kw_only=True):
    """How requests find their workers."""

    policy: RouterPolicy = "least-loaded"
    """kv goes where the prompt's prefix is cached already; the others balance load or ignore it."""


class Parallel(Part, frozen=True, kw_only=True):
    """How one replica's engine is spread over GPUs; their product is the GPUs of a replica."""

    tp: AtLeast1 = 1
    """Tensor parallel ranks: each layer is split over so many GPUs."""

    pp: AtLeast1 = 1
    """Pipeline stages: the layers are dealt out to so many groups of GPUs."""

    dp: AtLeast1 = 1
    """Data parallel ranks of the attention, for mixture-of-experts models."""

    ep: AtLeast1 = 1
    """Expert parallel ranks."""


class Stage(Part, frozen=True, kw_only=True):
    """A group of equal workers."""

    name: Name
    """Names the stage in commands and metrics; its processes are name-0, name-1, ..."""

    role: Role = Role.BOTH
    """prefill reads prompts and hands the KV cache over; decode writes tokens; both does the two."""

    replicas: AtLeast0 = 1
    """How many workers; 0 keeps the stage declared, with nothing running."""

    engine: str = _WORKER.engine
    """What makes the tokens: torch (embedded) or sim (made-up tokens at modelled speed)."""

    gpu: str = ""
    """The kind of GPU this stage is meant for (H100, L40S, ...); empty: whatever the machine has."""

    parallel: Parallel = field(default_factory=Parallel)
    """How one replica is spread over GPUs."""

    engine_args: dict[str, str] = field(default_factory=dict)
    """Further settings, each for one engine alone."""

    cpus: list[AtLeast0] = field(default_factory=list)
    """Cores to pin this stage's workers to: replica i runs on ``cpus[i % len]``. Empty: not pinned."""

    device: str = _WORKER.device
    """cpu, cuda, cuda:N, or auto: cuda where there is one."""

    dtype: str = _WORKER.dtype
    """float32, bfloat16, or auto: the checkpoint's."""

    threads: AtLeast0 = _WORKER.threads
    """Compute threads of one worker; 0: the cores, shared fairly with the machine's other workers."""

    block_tokens: AtLeast1 = _WORKER.block_tokens
    """Tokens in one KV block; stages that hand over to each other need the same."""

    kv_blocks: AtLeast0 = _WORKER.kv_blocks
    """KV blocks; 0: what fits into ``kv_memory_mb``."""

    kv_memory_mb: AtLeast0 = _WORKER.kv_memory_mb
    """Memory for the KV cache in MiB; 0: a fair share of what the machine has left."""

    max_sequences: AtLeast1 = _WORKER.max_sequences
    """Most sequences in one step."""

    max_waiting: AtLeast1 = _WORKER.max_waiting
    """Most requests in the engine's queue; more are refused with 429."""

    max_model_len: AtLeast0 = _WORKER.max_model_len
    """Most tokens, prompt plus output; 0: the checkpoint's."""

    token_budget: AtLeast0 = _WORKER.token_budget
    """Most tokens that one step computes; 0: chosen for the role."""

    prefill_budget: AtLeast0 = _WORKER.prefill_budget
    """Most prefill tokens in one step; 0: chosen for the role."""

    prefix_cache: bool = _WORKER.prefix_cache
    """Reuse the KV blocks of equal prompt prefixes."""

    transports: list[str] = field(default_factory=lambda: list(_WORKER.transports))
    """KV transport drivers, best first."""

    lease_s: Seconds = _WORKER.lease_s
    """How long a finished prefill's blocks wait for their receiver, in seconds."""

    drain_timeout_s: Seconds = _WORKER.drain_timeout_s
    """How long a drain waits for running requests before it ends them, in seconds."""


class Planner(Part, frozen=True, kw_only=True):
    """Whether the factory scales itself."""

    mode: PlannerMode = "off"
    """off, advise (say what it would do) or auto (do it)."""


class Log(Part, frozen=True, kw_only=True):
    """What the processes write to their logs."""

    level: LogLevel = "info"
    """The least important line that is written."""

    format: LogFormat = "text"
    """text for people, json for machines."""


class Factory(Part, frozen=True, kw_only=True):
    """One factory: a model, its front door, and the stages that make its tokens."""

    api_version: Literal["tokenmill/v1"] = msgspec.field(default=API_VERSION, name="apiVersion")
    """The file format's version."""

    kind: Literal["Factory"] = KIND
    """What the file declares."""

    metadata: Metadata
    """Who this factory is."""

    model: Model = field(default_factory=Model)
    """What is served."""

    slo: Slo = field(default_factory=Slo)
    """What clients are promised."""

    frontend: Frontend = field(default_factory=Frontend)
    """The front door."""

    router: Router = field(default_factory=Router)
    """How requests find their workers."""

    stages: list[Stage]
    """The groups of workers."""

    planner: Planner = field(default_factory=Planner)
    """Whether the factory scales itself."""

    log: Log = field(default_factory=Log)
    """What the processes write to their logs."""
