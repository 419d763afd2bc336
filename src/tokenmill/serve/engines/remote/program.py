"""The words that begin a server's command line. It must not know which server it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.remote.options import ServerOptions


def program(
    options: ServerOptions, module: str, *, here: bool, subcommand: Sequence[str] = (), bare: Sequence[str]
) -> list[str]:
    """Return the words before a server's options: the user's command, or ``module`` in the user's Python,
    each with the ``subcommand``; ``bare`` where the user names neither.

    ``here``: it runs on this machine, so that the Python must be there. Raises ConfigError.
    """
    if options.engine_command:
        return [*options.engine_command.split(), *subcommand]
    if not options.engine_python:
        return list(bare)
    if here and not Path(options.engine_python).exists():
        raise ConfigError(f"engine_python: there is no {options.engine_python}", param="engine_python")
    return [options.engine_python, "-m", module, *subcommand]
