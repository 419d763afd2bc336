"""What launching a TensorRT-LLM server means: its command, options file, environment and address.

Plain functions, so that what ``tokenmill render`` shows is what a worker runs. It must not start anything.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tokenmill.serve.engines.remote.options import LOOPBACK, ServerOptions
from tokenmill.serve.engines.remote.program import program
from tokenmill.serve.engines.trtllm.launch import (
    TrtllmSettings,
    options_text,
    serve_arguments,
    serve_environment,
    serve_options,
)


class TrtllmOptions(ServerOptions, frozen=True, kw_only=True):
    """What a worker is told of its engine. ``checkpoint``: the model's folder, where it is on this
    machine."""

    checkpoint: Path | None = None


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
        parallel=options.parallel,
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
    words = program(
        options,
        "tensorrt_llm.commands.serve",
        here=here,
        subcommand=("serve",),
        bare=("trtllm-serve", "serve"),
    )
    return LaunchPlan(
        command=[*words, *serve_arguments(settings)],
        environment={**serve_environment(), **options.engine_env},
        url=f"http://{host}:{port}",
        options_file=settings.options_file,
        options=options_text(serve_options(settings)),
    )
