"""The section of the factory file about a stage: a group of equal workers.

Defaults are those of ``spec.process``, so that the two cannot drift. Knows nothing of YAML.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, field

from tokenmill.protocol.ids import Role
from tokenmill.spec.parts import AtLeast0, AtLeast0Float, AtLeast1, Name, Part, Seconds
from tokenmill.spec.process import WorkerConfig

_WORKER: Final = WorkerConfig()


class Parallel(Part, frozen=True, kw_only=True):
    """How one replica's engine is spread over GPUs: ``tp * pp * dp`` of them."""

    tp: AtLeast1 = 1
    """Tensor parallel ranks: each layer is split over so many GPUs."""

    pp: AtLeast1 = 1
    """Pipeline stages: the layers are dealt out to so many groups of GPUs."""

    dp: AtLeast1 = 1
    """Data parallel ranks of the attention, for mixture-of-experts models."""

    ep: AtLeast1 = 1
    """Expert parallel ranks: above 1 the experts are spread over the replica's GPUs, which does not need more
    of them."""


class Price(Part, frozen=True, kw_only=True):
    """What a million tokens cost, in the currency of your bills; told with the stage's metrics."""

    input: AtLeast0Float = _WORKER.price_input
    """A million prompt tokens."""

    cached: Annotated[float, Meta(ge=-1)] = _WORKER.price_cached
    """A million prompt tokens that were found in a cache; -1: as much as others."""

    output: AtLeast0Float = _WORKER.price_output
    """A million generated tokens."""


class Stage(Part, frozen=True, kw_only=True):
    """A group of equal workers."""

    name: Name
    """Names the stage in commands and metrics; its processes are name-0, name-1, ..."""

    model: str = ""
    """Which of the factory's ``models`` it serves, by name; not needed where there is one."""

    role: Role = Role.BOTH
    """prefill reads prompts and hands the KV cache over; decode writes tokens; both does the two."""

    replicas: AtLeast0 = 1
    """How many workers; 0 keeps the stage declared, with nothing running."""

    engine: str = _WORKER.engine
    """What makes the tokens: torch (embedded), sim (made-up tokens at modelled speed), or a server of its
    own: vllm, sglang, trtllm, or openai (any server with that API, by attach)."""

    attach: str = _WORKER.attach
    """Address of a running engine (http://host:port) to use in place of one that the worker starts."""

    attach_key: str = _WORKER.attach_key
    """The key that the attached engine asks for: ``env:NAME`` (a variable where the factory is brought up) or
    ``file:PATH`` (seen from this file), so that it stands in neither file nor log; or the key itself."""

    price: Price = field(default_factory=Price)
    """What its tokens cost."""

    engine_python: str = _WORKER.engine_python
    """The Python of the environment with a launched engine in it; empty: its command on the path."""

    engine_command: str = _WORKER.engine_command
    """The command that launches the engine, in place of ``engine_python``."""

    engine_env: dict[str, str] = field(default_factory=dict)
    """Environment variables for a launched engine."""

    gpu: str = ""
    """The kind of GPU this stage is meant for (H100, L40S, ...); empty: whatever the machine has."""

    parallel: Parallel = field(default_factory=Parallel)
    """How one replica is spread over GPUs."""

    gpus: list[AtLeast0] = field(default_factory=list)
    """Which GPUs of its machine the stage's launched engines get, so many to each replica as ``parallel``
    says; where replicas or stages are given the same one they share it. Empty: each gets GPUs of its own."""

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

    block_tokens: AtLeast0 = _WORKER.block_tokens
    """Tokens in one KV block; 0: 16 with the embedded engines, others choose their own. Stages that hand over
    to each other need the same."""

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

    profile: str = _WORKER.profile
    """A profile file (made by ``tokenmill profile``; a relative path is seen from this file): prefill stops
    where it says that the device is saturated, unless ``prefill_budget`` is given; engine sim takes its
    step times."""

    step_times: str = _WORKER.step_times
    """A file of step times (made by ``tokenmill plan --write``; a relative path is seen from this file),
    which workers tell routers in place of the profile's; they are corrected by what their steps take."""

    prefix_cache: bool = _WORKER.prefix_cache
    """Reuse the KV blocks of equal prompt prefixes."""

    transports: list[str] = field(default_factory=lambda: list(_WORKER.transports))
    """KV transport drivers, best first."""

    transfer_host: str = _WORKER.transfer_host
    """The address at which other workers' engines fetch the KV cache from this stage's; where one of them
    is on another machine, one that it reaches."""

    kv_connector: str = _WORKER.kv_connector
    """How two vLLM engines hand the KV cache over: nixl (vLLM's own), or tokenmill (over ``transports``). An
    engine that the worker attaches to has been started with it. Both stages need the same."""

    lease_s: Seconds = _WORKER.lease_s
    """How long a finished prefill's blocks wait for their receiver, in seconds."""

    drain_timeout_s: Seconds = _WORKER.drain_timeout_s
    """How long a drain waits for running requests before it ends them, in seconds."""
