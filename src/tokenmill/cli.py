"""The command line: one thin function a command; the work is done elsewhere.

Imports stand inside the functions, so that ``tokenmill --help`` is quick and no command pays for another.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cyclopts import App

DEBUG_VARIABLE = "TOKENMILL_DEBUG"
"""Set to 1 it shows tracebacks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 for good, 1 for failed, 2 for bad usage or a bad file."""
    from cyclopts import CycloptsError

    from tokenmill.errors import ConfigError, TokenmillError

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        app = make_app()
        status = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(str(error), 2, error)
    except ConfigError as error:
        return _complain(error.message, 2, error)
    except TokenmillError as error:
        return _complain(error.message, 1, error)
    except KeyboardInterrupt:
        return 130
    return status if isinstance(status, int) else 0


def make_app() -> App:
    """Put the commands together."""
    from cyclopts import App

    import tokenmill
    from tokenmill.operate.deploy.flags import config_command
    from tokenmill.operate.deploy.quick import ServeOptions
    from tokenmill.spec.process import FrontendConfig, WorkerConfig

    app = App(
        name="tokenmill",
        version=tokenmill.__version__,
        help="An inference factory for LLMs.",
        help_format="plaintext",
    )
    app.command(config_command(ServeOptions, _serve, positional="model"), name="serve")
    for command in (up, down, status, scale, doctor, schema):
        app.command(command)
    app.command(config_command(FrontendConfig, _frontend), name="frontend")
    app.command(config_command(WorkerConfig, _worker), name="worker")
    return app


def _complain(message: str, status: int, error: Exception) -> int:
    if os.environ.get(DEBUG_VARIABLE) == "1":
        raise error
    for line in message.strip().splitlines():
        sys.stderr.write(f"tokenmill: error: {line}\n")
    return status


def _serve(options: Any) -> int:
    from tokenmill.operate.deploy.commands import serve

    return serve(options)


def _frontend(config: Any) -> int:
    from tokenmill.serve.frontend.main import main as run

    return run(config)


def _worker(config: Any) -> int:
    from tokenmill.serve.worker.main import main as run

    return run(config)


def up(factory: Path, /, *, foreground: bool = False, log_file: Path | None = None) -> int:
    """Bring a factory up on this machine, or apply a changed file to the one that runs.

    Args:
        factory: The factory file (YAML or JSON).
        foreground: Stay, with all logs on the terminal; Ctrl-C drains.
        log_file: Where the output leads, if it is to be kept at a bounded size.
    """
    from tokenmill.operate.deploy.commands import up

    return up(factory, foreground=foreground, log_file=log_file)


def down(name: str | None = None, /, *, now: bool = False) -> int:
    """Drain a factory and stop it.

    Args:
        name: Its name or its file; not needed if only one runs.
        now: Stop without draining.
    """
    from tokenmill.operate.deploy.commands import down

    return down(name, at_once=now)


def status(name: str | None = None, /, *, json: bool = False) -> int:
    """Show what runs on this machine.

    Args:
        name: Only this factory (its name or its file).
        json: Write JSON.
    """
    from tokenmill.operate.deploy.status import status

    return status(name, as_json=json)


def scale(factory: str, /, *stages: str) -> int:
    """Change how many replicas the stages of a running factory have.

    Args:
        factory: Its name or its file.
        stages: STAGE=N, for example decode=2.
    """
    from tokenmill.operate.deploy.commands import scale

    return scale(factory, stages)


def doctor(factory: Path | None = None, /) -> int:
    """Check whether this machine can run Tokenmill, and say how to mend what is amiss.

    Args:
        factory: Check this factory file, too.
    """
    from tokenmill.operate.deploy.doctor import doctor

    return doctor(factory)


def schema() -> int:
    """Write the factory file's JSON schema, for editors."""
    import msgspec

    from tokenmill.spec.schema import factory_schema

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(factory_schema())).decode() + "\n")
    return 0
