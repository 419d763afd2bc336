"""What the single processes of a factory are told. Command-line flags and environment variables are
derived from these dataclasses, so that there is one place to look a setting up.

``TOKENMILL_<FIELD>`` in the environment sets a field; a flag wins over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from tokenmill.protocol.ids import Role

ENVIRONMENT_PREFIX: Final = "TOKENMILL_"
"""Variables are this and the field's name in capitals."""

EMBEDDED_BLOCK_TOKENS: Final = 16
"""Tokens in a KV block of the embedded engines: short prompts can share, and a block is worth a copy."""


@dataclass(frozen=True, kw_only=True)
class ProcessConfig:
    """What every process of a factory is told."""

    registry: str = "memory:"
    """Where workers announce themselves: "memory:" (one process), or "file:///folder" (one host)."""

    run_dir: str = ""
    """Folder for Unix sockets and process files; empty: a fresh temporary folder, removed at exit."""

    log_level: str = "info"
    """debug, info, warning or error."""

    log_format: str = "text"
    """text for people, json for machines."""

    parent_fd: int | None = None
    """A pipe whose end of file means that the parent has died; the process then exits by itself."""

    ready_fd: int | None = None
    """Where one line of JSON is written once the process is ready, or could not become so."""


@dataclass(frozen=True, kw_only=True)
class WorkerConfig(ProcessConfig):
    """One worker: one engine in one role."""

    model: str = ""
    """Checkpoint folder in Hugging Face format; empty: the small model that ships with the package."""

    model_name: str = ""
    """The name that clients use; empty: the folder's name."""

    engine: str = "torch"
    """torch (embedded), sim (made-up tokens at modelled speed), or a server of its own: vllm, sglang,
    trtllm, or openai (any server with that API, by attach)."""

    attach: str = ""
    """Address of a running engine (http://host:port) to use in place of one that the worker starts."""

    attach_key: str = ""
    """The key that the attached engine asks for: env:NAME (a variable), file:PATH, or the key itself."""

    price_input: float = 0.0
    """What a million prompt tokens cost."""

    price_cached: float = -1.0
    """What a million prompt tokens cost that were found in a cache; -1: as much as others."""

    price_output: float = 0.0
    """What a million generated tokens cost."""

    engine_python: str = ""
    """The Python of the environment with a launched engine in it; empty: its command on the path."""

    engine_command: str = ""
    """The command that launches the engine, in place of ``engine_python``."""

    engine_env: dict[str, str] = field(default_factory=dict)
    """Environment variables for a launched engine (KEY=VALUE)."""

    tp: int = 1
    """Tensor parallel ranks of a launched engine."""

    pp: int = 1
    """Pipeline stages of a launched engine."""

    dp: int = 1
    """Data parallel ranks of a launched engine."""

    ep: int = 1
    """Expert parallel ranks of a launched engine; above 1 experts are spread over all its ranks."""

    kv_connector: str = "nixl"
    """How two vLLM engines hand the KV cache over: nixl (vLLM's own), or tokenmill (over ``transports``). An
    engine that the worker attaches to has been started with it."""

    gpus: list[int] = field(default_factory=list)
    """GPUs that a launched engine sees, counted among those that this process sees; empty: all of them."""

    role: Role = Role.BOTH
    """prefill, decode or both."""

    stage: str = ""
    """The stage's name in the factory file; empty: the role's name."""

    replica: int = 0
    """Which replica of its stage this is."""

    listen: str = ""
    """"unix:/path" or "tcp://host:port" (port 0: any) of the request server; empty: a socket in run_dir."""

    transports: list[str] = field(default_factory=lambda: ["shm", "tcp"])
    """KV transport drivers, best first."""

    transfer_host: str = "127.0.0.1"
    """The address at which other workers' engines fetch the KV cache: of the tcp transport, and of a launched
    engine's own connector. For others on other machines it must be one that they reach."""

    lease_s: float = 30.0
    """How long a finished prefill's blocks wait for their receiver, in seconds."""

    registry_ttl_s: float = 5.0
    """After how long without a sign of life others take this worker for dead, in seconds."""

    drain_timeout_s: float = 60.0
    """How long a drain waits for running requests before it ends them, in seconds."""

    dtype: str = "auto"
    """float32, bfloat16, or auto: the checkpoint's."""

    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: cuda where there is one."""

    threads: int = 0
    """Compute threads of the embedded engine; 0: the cores this process may use, shared fairly with the
    other workers of the factory."""

    block_tokens: int = 0
    """Tokens in one KV block; 0: 16 with the embedded engines, others choose their own."""

    kv_blocks: int = 0
    """KV blocks; 0: what fits into ``kv_memory_mb``."""

    kv_memory_mb: int = 0
    """Memory for the KV cache in MiB; 0: a fair share of what the machine has left."""

    max_sequences: int = 64
    """Most sequences in one step."""

    max_waiting: int = 1024
    """Most requests in the engine's queue; more are refused with 429."""

    max_model_len: int = 0
    """Most tokens, prompt plus output; 0: the checkpoint's."""

    token_budget: int = 0
    """Most tokens that one step computes; 0: chosen for the role."""

    prefill_budget: int = 0
    """Most prefill tokens in one step; 0: chosen for the role."""

    profile: str = ""
    """A profile file (made by tokenmill profile): prefill stops where it says that the device is saturated,
    unless ``prefill_budget`` is given; engine sim takes its step times."""

    step_times: str = ""
    """A file of step times (made by tokenmill plan --write), told to routers in place of the profile's."""

    prefix_cache: bool = True
    """Reuse the KV blocks of equal prompt prefixes."""

    engine_args: dict[str, str] = field(default_factory=dict)
    """Further settings, each for one engine alone (KEY=VALUE)."""


@dataclass(frozen=True, kw_only=True)
class FrontendConfig(ProcessConfig):
    """One front door."""

    model: str = ""
    """Checkpoint folder whose tokenizer and chat template are used; empty: the shipped model's."""

    model_name: str = ""
    """The name that clients use; empty: the folder's name."""

    model_paths: dict[str, str] = field(default_factory=dict)
    """Several models in place of one: checkpoint folders by the names that clients use (NAME=FOLDER); a
    worker belongs to the model that its card names."""

    tool_parser: str = "auto"
    """How models write tool calls: hermes (Qwen, too), llama3_json, mistral, pythonic, none (calls stay
    text), or auto: as the chat template shows."""

    model_tool_parsers: dict[str, str] = field(default_factory=dict)
    """The same for some of several models, by the names that clients use (NAME=PARSER)."""

    text_models: list[str] = field(default_factory=list)
    """Models whose workers take text, so that no tokenizer is needed here, by the names that clients use;
    "*": every model that a worker's server lists."""

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = 8000
    """Port to listen on; 0: any."""

    reuse_port: bool = False
    """Let other front doors listen on the same port; the kernel deals connections out among them (Linux)."""

    own_listen: str = ""
    """"host:port" (port 0: any) of a second address that reaches this front door alone, for probes and
    metrics (GET only, no TLS); empty: none."""

    peer_sync: bool = True
    """Tell the factory's other front doors what is routed, so that all choose workers as one would."""

    peer_listen: str = ""
    """"unix:/path" or "tcp://host:port" (port 0: any) where other front doors reach this one; empty: a
    socket in run_dir."""

    peer_interval_ms: float = 5.0
    """The least time between two messages to another front door, in milliseconds: what is routed here is
    known there so much later."""

    registry_ttl_s: float = 5.0
    """After how long without a sign of life other front doors take this one for dead, in seconds."""

    router_policy: str = "kv"
    """kv, least-loaded, power-of-two, round-robin, random, session, or the name of an installed policy."""

    router_prefill: str = "auto"
    """Where prompts are computed: local (where they are decoded), remote (elsewhere), or auto: the better."""

    router_local_share: float = 0.0
    """With auto: the least share of prompts that workers that decode compute, where there is a choice."""

    slo_itl_ms: float = 50.0
    """The time between tokens, in milliseconds, by which unequal decode workers share out sequences."""

    router_temperature_ms: float = 0.0
    """0: always the cheapest worker. Else one that costs so many milliseconds more is chosen 1/e as often."""

    router_weights: dict[str, float] = field(default_factory=dict)
    """Weights of the cost function that are to differ from the usual, by name."""

    router_kv_events: bool = True
    """Ask workers what they cache. If not, a prompt is taken to be cached where it went."""

    router_index_blocks: int = 1_000_000
    """Most cached blocks that are remembered, about 100 bytes each."""

    router_predicted_ttl_s: float = 5.0
    """How long a prompt is taken to be cached where it went, before the worker says so, in seconds."""

    router_approximate_ttl_s: float = 120.0
    """The same for workers that give no events."""

    router_session_header: str = "x-session-id"
    """The request header that names a conversation, for the session policy."""

    max_body_bytes: int = 8 * 1024 * 1024
    """Largest request body; a larger one is answered with 413."""

    max_prompt_tokens: int = 0
    """Longest prompt; 0: what the model's context leaves."""

    max_output_tokens: int = 0
    """Largest ``max_tokens``; 0: what the model's context leaves."""

    default_max_tokens: int = 0
    """``max_tokens`` where a completion names none; 0: 16 for completions as OpenAI has it, the rest of the
    context for chats."""

    max_header_bytes: int = 32 * 1024
    """Largest request head; a larger one is answered with 431."""

    max_headers: int = 100
    """Most headers in a request; more are answered with 431."""

    max_url_bytes: int = 8 * 1024
    """Longest path and query; a longer one is answered with 414."""

    max_connections: int = 4096
    """Most open client connections; further ones are refused with 503."""

    max_streams: int = 2048
    """Most requests being generated or waiting for it, streamed or not; further ones are refused with 503."""

    max_pipelined: int = 8
    """Requests waiting on a connection behind the one being served before no more is read from it."""

    max_buffered_mb: int = 512
    """Memory in MiB for request bodies that are still arriving, over all connections; above it the largest
    are refused with 503."""

    idle_timeout_s: float = 75.0
    """How long a kept-alive connection may be silent, in seconds."""

    header_timeout_s: float = 20.0
    """How long a request's head may take to arrive, in seconds; then 408."""

    read_timeout_s: float = 60.0
    """How long a whole request may take to arrive, in seconds; then 408."""

    write_timeout_s: float = 60.0
    """How long a client may leave what we send unread before it is dropped, in seconds."""

    write_buffer_bytes: int = 64 * 1024
    """Unread bytes of one client above which its generation is paused."""

    tls_cert: str = ""
    """Certificate file (PEM, with those above it); with it clients speak https. Empty: plain http."""

    tls_key: str = ""
    """File with the certificate's private key (PEM, not encrypted); empty: it is in ``tls_cert``."""

    tls_client_ca: str = ""
    """Authorities (PEM) that must have signed a client's certificate; empty: clients need none."""

    cors_origins: list[str] = field(default_factory=list)
    """Web origins (https://example.com) whose pages may read answers, or "*" for all; empty: none."""

    cors_credentials: bool = False
    """Let those pages send their user's cookies and client certificates; not with "*"."""

    request_timeout_s: float = 600.0
    """Longest time a request may take, in seconds; then 504."""

    write_interval_ms: float = 2.0
    """The least time between two writes to one client, in milliseconds: tokens that come sooner share the
    next write. A stream whose tokens are farther apart never waits; 0: each is written at once."""

    tokenizer_cache_mb: int = 8
    """Memory in MiB for turns of chats that were turned into tokens before; 0: nothing is kept."""

    worker_wait_s: float = 5.0
    """How long a request waits for a worker to become ready before it gets 503, in seconds."""

    drain_timeout_s: float = 30.0
    """How long a shutdown waits for running requests, in seconds."""

    admission_enabled: bool = True
    """Let requests wait here while all workers are busy; else each goes to a worker and waits there."""

    admission_max_queued: int = 1024
    """Most sequences that wait for a worker; then who has the least right to his place gets 429."""

    admission_max_queued_tokens: int = 2_000_000
    """Most prompt tokens that wait: about 24 MB of token ids."""

    admission_max_wait_s: float = 30.0
    """How long a request waits while all workers are busy before it gets 503, in seconds."""

    admission_busy_kv_share: float = 0.9
    """A worker is busy when more than this share of its KV blocks is held; sequences grow into the rest."""

    admission_busy_prefill_s: float = 1.0
    """A worker is busy when it has prefill queued for more than so many seconds, at its measured speed."""

    admission_busy_prefill_tokens: int = 8192
    """The same in tokens, for a worker whose speed is not known yet."""

    admission_busy_spare_places: float = 0.25
    """A worker is busy when its batch is full and so many sequences, as a share of it, wait for a place."""

    admission_level_turn_s: float = 5.0
    """Higher priorities go first, but one that had nothing admitted for so many seconds gets a turn."""

    admission_tenant_header: str = "x-tenant-id"
    """The request header that names a tenant; requests without it are one tenant together."""

    admission_tenant_weights: dict[str, float] = field(default_factory=dict)
    """Shares of tenants by name; 1 for all others. Under load one of weight 2 gets twice the tokens."""

    admission_charge_input: float = 1.0
    """What a prompt token that is computed counts in its tenant's share."""

    admission_charge_cached: float = 0.1
    """What a prompt token that is found in a cache counts."""

    admission_charge_output: float = 2.0
    """What a generated token counts."""

    migration_max_attempts: int = 3
    """How many workers a request may be given, one after the other, because the last one died, stalled or
    left; what was sent to the client already is not sent again. 1: a request ends with its worker."""

    migration_max_tokens: int = 0
    """Longest prompt plus output so far that another worker is asked to read anew, in tokens; 0: any."""

    migration_stall_timeout_s: float = 5.0
    """After how long without a sign of life a worker's requests go on elsewhere, in seconds."""

    migration_step_timeout_s: float = 60.0
    """The same for a worker that reports but whose engine, with work to do, has ended no step, in seconds."""

    explain_requests: int = 1000
    """Of how many of the last requests GET /v1/explain/{request_id} tells; 0: of none. One takes 3 kB."""
