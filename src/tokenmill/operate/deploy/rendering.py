"""``tokenmill render``: what a factory would run, as commands for people and scripts. Runs nothing.

Which command launches an engine is the engines' business; which GPUs a replica gets is the plan's.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.flags import to_flags
from tokenmill.operate.deploy.preflight import grounded
from tokenmill.serve.engines.launches import EngineLaunch, engine_launch
from tokenmill.spec.derive import to_frontend_config, worker_config
from tokenmill.spec.factory import Factory
from tokenmill.spec.load import load_factory
from tokenmill.spec.models import model_name, resolve_model
from tokenmill.spec.placement import HERE, assign_gpus, host_of
from tokenmill.spec.process import WorkerConfig
from tokenmill.spec.stage import Stage

TARGETS: Final = ("commands",)

FIRST_PORT: Final = 20000
"""Ports of launched engines are chosen when they start; in what is shown they are counted from here."""


class Rendered(msgspec.Struct, frozen=True, kw_only=True):
    """One process.

    ``host``: where it runs, empty: here. ``runs``: it is started by ``tokenmill up``; else by you, and
    attached to. ``gpus``: the numbers of those that it sees, empty: whatever is there. ``files``: texts by
    the path at which the command reads them.
    """

    name: str
    host: str
    runs: bool
    gpus: list[int]
    environment: dict[str, str]
    command: list[str]
    files: dict[str, str] = {}
    note: str = ""


def render(path: Path, *, target: str = "commands", as_json: bool = False) -> int:
    """Print a factory file's commands. Raises ConfigError."""
    if target not in TARGETS:
        raise ConfigError(f'--target: "{target}" is not {" or ".join(TARGETS)}')
    shown = list(commands(grounded(load_factory(path), path.absolute().parent), os.environ))
    if as_json:
        text = msgspec.json.format(msgspec.json.encode(shown)).decode() + "\n"
    else:
        text = "\n".join(map(as_text, shown))
    sys.stdout.write(text)
    return 0


def commands(factory: Factory, environment: Mapping[str, str]) -> Iterator[Rendered]:
    """Yield what runs, stage by stage, front doors last. ``environment``: of who brings the factory up.

    Raises ConfigError for settings that an engine cannot have.
    """
    gpus = assign_gpus(factory)
    port = FIRST_PORT
    for stage in factory.stages:
        for replica in range(stage.replicas):
            config = replace(
                worker_config(factory, stage, replica), gpus=list(gpus.get((stage.name, replica), ()))
            )
            launch = engine_launch(_with_model(config), port, environment)
            port += launch.ports if launch is not None else 0
            yield _worker(stage, config, launch)
    for replica in range(factory.frontend.replicas):
        front = to_frontend_config(factory)
        yield Rendered(
            name=f"frontend-{replica}",
            host=HERE,
            runs=True,
            gpus=[],
            environment={},
            command=["tokenmill", "frontend", *to_flags(front)],
        )


def as_text(shown: Rendered) -> str:
    """Write one process as lines for a shell."""
    where = f"on {shown.host}" if shown.host else "on this machine"
    which = f", GPUs {','.join(map(str, shown.gpus))}" if shown.gpus else ""
    who = "" if shown.runs else ", started by you and attached to"
    lines = [f"# {shown.name}: {where}{which}{who}"]
    if shown.note:
        lines.append(f"# {shown.note}")
    for path, text in shown.files.items():
        lines += [f"cat > {shlex.quote(path)} <<'EOF'", text.rstrip("\n"), "EOF"]
    lines += [f"{name}={shlex.quote(value)} \\" for name, value in shown.environment.items()]
    lines.append(_wrapped(shown.command))
    return "\n".join(lines) + "\n"


def _worker(stage: Stage, config: WorkerConfig, launch: EngineLaunch | None) -> Rendered:
    name = f"{stage.name}-{config.replica}"
    if launch is None:
        return Rendered(
            name=name,
            host=HERE,
            runs=True,
            gpus=[],
            environment={},
            command=["tokenmill", "worker", *to_flags(_without_key(config))],
        )
    needs_key = stage.attach and stage.attach_key
    return Rendered(
        name=name,
        host=host_of(stage),
        runs=not stage.attach,
        gpus=config.gpus,
        environment=launch.environment,
        command=launch.command,
        files=launch.files,
        note="the server needs the key of attach_key, too: VLLM_API_KEY" if needs_key else "",
    )


def _with_model(config: WorkerConfig) -> WorkerConfig:
    """Name the folder that an engine on this machine will load; what the file says, if it is not here yet."""
    if config.attach:
        return config
    name = model_name(config.model_name, config.model)
    try:
        return replace(config, model=str(resolve_model(config.model)), model_name=name)
    except ConfigError:
        return config


def _without_key(config: WorkerConfig) -> WorkerConfig:
    """A key is not for eyes, unless it only says where the key is."""
    plain = config.attach_key and not config.attach_key.startswith(("env:", "file:"))
    return replace(config, attach_key="...") if plain else config


def _wrapped(command: list[str]) -> str:
    """One option a line, so that two commands can be compared."""
    lines: list[list[str]] = [[]]
    for word in command:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n    ".join(" ".join(words) for words in lines)
