"""What the single processes of a factory are told. Command-line flags and environment variables are
derived from these dataclasses, so that there is one place to look a setting up.

``TOKENMILL_<FIELD>`` in the environment sets a field; a flag wins over it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenmill.protocol.ids import Role


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
    """torch or sim."""

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
    """The address that the tcp KV transport listens on."""

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

    block_tokens: int = 16
    """Tokens in one KV block."""

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

    host: str = "127.0.0.1"
    """Address to listen on."""

    port: int = 8000
    """Port to listen on; 0: any."""

    router_policy: str = "least-loaded"
    """How workers are chosen."""

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
    """Largest request head."""

    max_connections: int = 4096
    """Most open client connections; further ones are refused with 503."""

    idle_timeout_s: float = 75.0
    """How long a kept-alive connection may be silent, in seconds."""

    request_timeout_s: float = 600.0
    """Longest time a request may take, in seconds; then 504."""

    worker_wait_s: float = 5.0
    """How long a request waits for a worker to become ready before it gets 503, in seconds."""

    drain_timeout_s: float = 30.0
    """How long a shutdown waits for running requests, in seconds."""
