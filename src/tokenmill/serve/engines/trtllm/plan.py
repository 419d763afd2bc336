"""What launching a TensorRT-LLM server means: its command, options file, environment and address.

Plain functions, so that what ``tokenmill render`` shows is what a worker runs. It must not start anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.trtllm.launch import (
    Ranks,
    TrtllmSettings,
    options_text,
    serve_arguments,
    serve_environment,
    serve_options,
)
from tokenmill.serve.engines.trtllm.server import launch_command

LOOPBACK = "127.0.0.1"


class TrtllmOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told of its engine. ``attach``: address of a running server; else one is launched.

    ``checkpoint``: the model's folder, where it is on this machine.
    """

    model: str
    model_name: str
    role: Role
    checkpoint: Path | None = None
    attach: str = ""
    api_key: str = ""
    engine_python: str = ""
    engine_command: str = ""
    engine_args: Mapping[str, str] = {}
    engine_env: Mapping[str, str] = {}
    ranks: Ranks = Ranks()
    run_dir: str = ""
    start_timeout_s: float = 1800.0
    block_tokens: int = 0
    kv_blocks: int = 0
    kv_memory_mb: int = 0
    max_model_len: int = 0
    max_sequences: int = 256
    max_waiting: int = 1024
    token_budget: int = 0
    dtype: str = "auto"
    prefix_cache: bool = True


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A server to start. ``environment``: beside the one that it inherits. ``options_file``, ``options``: a
    file that must be there before, and its text."""

    command: list[str]
    environment: dict[str, str]
    url: str
    options_file: str
    options: str


def plan_launch(options: TrtllmOptions, port: int, *, host: str = LOOPBACK, here: bool = True) -> LaunchPlan:
    """Return what starts the server. ``host``: where it listens; ``here``: on this machine.

    Raises ConfigError for arguments that cannot be.
    """
    settings = TrtllmSettings(
        model=options.model,
        role=options.role,
        host=host,
        port=port,
        options_file=str(Path(options.run_dir) / f"trtllm-{port}.yaml"),
        ranks=options.ranks,
        block_tokens=options.block_tokens,
        kv_blocks=options.kv_blocks,
        kv_memory_mb=options.kv_memory_mb,
        max_model_len=options.max_model_len,
        max_sequences=options.max_sequences,
        token_budget=options.token_budget,
        dtype=options.dtype,
        prefix_cache=options.prefix_cache,
        arguments=options.engine_args,
    )
    words = launch_command(options.engine_python, options.engine_command, here=here)
    return LaunchPlan(
        command=[*words, *serve_arguments(settings)],
        environment={**serve_environment(), **options.engine_env},
        url=f"http://{host}:{port}",
        options_file=settings.options_file,
        options=options_text(serve_options(settings)),
    )
