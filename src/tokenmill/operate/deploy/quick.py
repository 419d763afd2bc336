"""From ``tokenmill serve``'s flags to a factory. Pure: looks at no file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any, Final

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.spec.derive import TEXT_ENGINES
from tokenmill.spec.factory import Factory, Log, Metadata, Model
from tokenmill.spec.front import Frontend, Router
from tokenmill.spec.problems import FactoryError
from tokenmill.spec.process import FrontendConfig, WorkerConfig
from tokenmill.spec.stage import Stage

_FRONTEND: Final = FrontendConfig()
_WORKER: Final = WorkerConfig()


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """Serve a model on this machine, now: a front door, prefill workers and decode workers."""

    model: str = ""
    """Checkpoint folder (Hugging Face format) or hub id; without it the small model that ships with the
    package."""

    name: str = ""
    """Name for status, scale and down; without it serve-PORT."""

    model_name: str = ""
    """The name that clients use; without it the folder's name."""

    tool_parser: str = Model().tool_parser
    """How the model writes tool calls: hermes (Qwen, too), llama3_json, mistral, pythonic, none (calls stay
    text), or auto: as its chat template shows."""

    engine: str = _WORKER.engine
    """What makes the tokens: torch, sim (made-up tokens; only MODEL's tokenizer is used), or a server of its
    own: vllm, sglang, trtllm, or openai (any OpenAI-compatible server, with --attach)."""

    attach: str = _WORKER.attach
    """Address of a running engine (http://host:port) to use in place of one that the workers start."""

    attach_key: str = _WORKER.attach_key
    """The key that the attached engine asks for: env:NAME (a variable), or file:PATH."""

    prefill: int | None = None
    """Prefill workers; 1, or 0 with --both."""

    decode: int | None = None
    """Decode workers; 1, or 0 with --both."""

    both: int = 0
    """Workers that do both stages themselves; with --engine openai 1."""

    host: str = _FRONTEND.host
    """Address to listen on; 0.0.0.0 opens it to the network."""

    port: int = _FRONTEND.port
    """Port to listen on; 0: any free one."""

    frontends: int = Frontend().replicas
    """Front doors; they share the port."""

    tls_cert: str = _FRONTEND.tls_cert
    """Certificate file (PEM, with those above it); with it clients speak https."""

    tls_key: str = _FRONTEND.tls_key
    """File with the certificate's private key (PEM, not encrypted); without it the key is in --tls-cert."""

    tls_client_ca: str = _FRONTEND.tls_client_ca
    """Authorities (PEM) that must have signed a client's certificate; without it clients need none."""

    cors_origins: list[str] = field(default_factory=list)
    """A web origin (https://example.com) whose pages may read answers, or "*" for all; may be repeated."""

    router_policy: str = Router().policy
    """How requests find their workers: kv, least-loaded, power-of-two, round-robin, random, session."""

    router_prefill: str = ""
    """Where prompts are computed: local (where they are decoded), remote (on a prefill worker), or auto (by
    predicted time). Without it auto; remote with the model that ships with the package, to show handoffs."""

    engine_args: dict[str, str] = field(default_factory=dict)
    """A setting for the engine, KEY=VALUE; may be repeated."""

    device: str = _WORKER.device
    """cpu, cuda, cuda:N, or auto: cuda where there is one."""

    dtype: str = _WORKER.dtype
    """float32, bfloat16, or auto: the checkpoint's."""

    threads: int = _WORKER.threads
    """Compute threads of one worker; 0: the cores, shared fairly."""

    kv_memory_mb: int = _WORKER.kv_memory_mb
    """Memory for one worker's KV cache in MiB; 0: a fair share of what the machine has left."""

    block_tokens: int = _WORKER.block_tokens
    """Tokens in one KV block."""

    max_sequences: int = _WORKER.max_sequences
    """Most sequences in one step of a worker."""

    max_model_len: int = _WORKER.max_model_len
    """Most tokens, prompt plus output; 0: the checkpoint's."""

    log_level: str = _WORKER.log_level
    """debug, info, warning or error."""

    log_format: str = _WORKER.log_format
    """text for people, json for machines."""


_FRONTEND_FIELDS: Final = ("host", "port", "tls_cert", "tls_key", "tls_client_ca", "cors_origins")
_STAGE_FIELDS: Final = (
    "engine", "attach", "attach_key", "device", "dtype", "threads", "kv_memory_mb", "block_tokens",
    "max_sequences", "max_model_len",
)  # fmt: skip


def _where_to_prefill(options: ServeOptions) -> str:
    """Return auto, but for the demonstration, whose short prompts would hardly ever be handed over."""
    return Router().prefill if options.model else "remote"


def quick_factory(options: ServeOptions) -> Factory:
    """Return the factory that the flags describe. Raises ConfigError naming the flags at fault."""
    both = options.both
    if options.engine in TEXT_ENGINES and not (options.prefill or options.decode or both):
        both = 1  # such a server can do nothing else
    default = 0 if both else 1
    counts = {
        Role.PREFILL: default if options.prefill is None else options.prefill,
        Role.DECODE: default if options.decode is None else options.decode,
        Role.BOTH: both,
    }
    for role, count in counts.items():
        if count < 0:
            raise ConfigError(f"--{role.value}: must be 0 or more, not {count}")
    if not any(counts.values()):
        raise ConfigError("no workers: give --prefill and --decode, or --both, at least 1")
    knobs: dict[str, Any] = {name: getattr(options, name) for name in _STAGE_FIELDS}
    stages = [
        Stage(name=role.value, role=role, replicas=count, engine_args=options.engine_args, **knobs)
        for role, count in counts.items()
        if count
    ]
    log: dict[str, Any] = {"level": options.log_level, "format": options.log_format}
    front: dict[str, Any] = {name: getattr(options, name) for name in _FRONTEND_FIELDS}
    router: dict[str, Any] = {
        "policy": options.router_policy,
        "prefill": options.router_prefill or _where_to_prefill(options),
    }
    model: dict[str, Any] = {"path": options.model, "tool_parser": options.tool_parser}
    factory = Factory(
        metadata=Metadata(name=options.name or f"serve-{options.port or os.getpid()}"),
        model=Model(name=options.model_name, **model),
        frontend=Frontend(replicas=options.frontends, **front),
        router=Router(**router),
        stages=stages,
        log=Log(**log),
    )
    return _checked(factory)


def _checked(factory: Factory) -> Factory:
    """Put the factory through the same checks as a file, and say what is wrong in terms of flags."""
    from tokenmill.spec.load import dump_factory, parse_factory  # noqa: PLC0415  no other command needs YAML

    try:
        return parse_factory(dump_factory(factory), "command line")
    except FactoryError as error:
        lines = dict.fromkeys(f"{_flag(problem.path)}: {problem.message}" for problem in error.problems)
        raise ConfigError("\n".join(lines)) from None


def _flag(path: str) -> str:
    special = {"metadata.name": "--name", "router.policy": "--router-policy", "model.path": "MODEL"}
    special |= {"log.level": "--log-level", "log.format": "--log-format"}
    special |= {"frontend.replicas": "--frontends", "router.prefill": "--router-prefill"}
    last = path.rpartition(".")[2]
    if last == "role":
        return "--prefill and --decode"
    return special.get(path, "--" + last.replace("_", "-"))
