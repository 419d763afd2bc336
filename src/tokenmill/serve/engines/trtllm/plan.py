"""What launching a TensorRT-LLM server means: its command, options file, environment and address.

Plain functions, so that what ``tokenmill render`` shows is what a worker runs. It must not start anything.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tokenmill.serve.engines.remote.options import LOOPBACK, ServerOptions
from tokenmill.serve.engines.remote.program import program
from tokenmill.serve.engines.trtllm.launch import (
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
    options_file = str(Path(options.run_dir) / f"trtllm-{port}.yaml")
    words = program(
        options,
        "tensorrt_llm.commands.serve",
        here=here,
        subcommand=("serve",),
        bare=("trtllm-serve", "serve"),
    )
    return LaunchPlan(
        command=[*words, *serve_arguments(options, host, port, options_file)],
        environment={**serve_environment(), **options.engine_env},
        url=f"http://{host}:{port}",
        options_file=options_file,
        options=options_text(serve_options(options)),
    )
