"""Flags of the single processes, derived from their config dataclasses in both directions.

A field ``kv_memory_mb`` is the flag ``--kv-memory-mb`` and the variable ``TOKENMILL_KV_MEMORY_MB``; a flag
wins. Of pairs, ``engine_args``, say, is the repeated flag ``--engine-arg KEY=VALUE``.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, fields, replace
from typing import Annotated, Any, ClassVar, Final, Protocol, TypeVar, get_type_hints

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.plant import ProcessSpec
from tokenmill.serve.engines.remote.keys import stands_for_itself
from tokenmill.spec.docs import field_docs
from tokenmill.spec.process import ENVIRONMENT_PREFIX, FrontendConfig, ProcessConfig, WorkerConfig


class Dataclass(Protocol):
    """Any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


Config = TypeVar("Config", bound=Dataclass)
SECRETS: Final = ("attach_key",)
"""What only the process itself is told."""

_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def to_flags(config: ProcessConfig) -> list[str]:
    """Write a config as flags, without what is at its default and without keys, which all could read
    there."""
    flags: list[str] = []
    for item in fields(config):
        value = getattr(config, item.name)
        if value == _default(item) or (item.name in SECRETS and stands_for_itself(value)):
            continue
        flag = "--" + item.name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(flag if value else "--no-" + item.name.replace("_", "-"))
        elif isinstance(value, list):
            flags += [f"{flag}={each}" for each in value]
        elif isinstance(value, dict):
            flags += [f"{flag.removesuffix('s')}={key}={each}" for key, each in value.items()]
        else:
            flags.append(f"{flag}={value}")
    return flags


def to_argv(config: ProcessConfig) -> list[str]:
    """Return the command that starts a process of this package with this config."""
    kind = "frontend" if isinstance(config, FrontendConfig) else "worker"
    return [sys.executable, "-m", "tokenmill", kind, *to_flags(config)]


def to_environment(base: Mapping[str, str], spec: ProcessSpec) -> dict[str, str]:
    """Return a child's environment: ``base`` without what flags say, with its share of the cores."""
    said = {ENVIRONMENT_PREFIX + item.name.upper() for item in fields(spec.config)}
    environment = {name: value for name, value in base.items() if name not in said}
    for name in SECRETS:
        if stands_for_itself(key := getattr(spec.config, name, "")):
            environment[ENVIRONMENT_PREFIX + name.upper()] = key
    environment["PYTHONUNBUFFERED"] = "1"
    # Workers share cores with each other and the front door: a waiting thread must not spin on one.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if spec.threads:
        environment |= dict.fromkeys(_THREAD_VARIABLES, str(spec.threads))
    return environment


def with_threads(spec: ProcessSpec) -> ProcessConfig:
    """Return the config with the threads that the plan gives this process."""
    return (
        replace(spec.config, threads=spec.threads) if isinstance(spec.config, WorkerConfig) else spec.config
    )


def parse_pairs(pairs: Iterable[str], flag: str) -> dict[str, str]:
    """Read KEY=VALUE words. Raises ConfigError naming ``flag``."""
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f'{flag}: "{pair}" is not KEY=VALUE')
        values[key] = value
    return values


def parse_numbers(pairs: Iterable[str], flag: str) -> dict[str, float]:
    """Read KEY=NUMBER words; the last "=" divides. Raises ConfigError naming ``flag``."""
    values: dict[str, float] = {}
    for pair in pairs:
        key, _, value = pair.rpartition("=")
        try:
            values[key] = float(value)
        except ValueError:
            key = ""
        if not key:
            raise ConfigError(f'{flag}: "{pair}" is not KEY=NUMBER')
    return values


def config_command(
    kind: type[Config], run: Callable[[Config], int], *, positional: str = ""
) -> Callable[..., int]:
    """Return a function for the command line whose parameters are the fields of the dataclass ``kind``.

    ``positional``: the field that is given without a flag.
    """
    from cyclopts import Parameter  # noqa: PLC0415  only where a command line is parsed

    hints, docs = get_type_hints(kind), field_docs(kind)
    pairs: dict[str, bool] = {}  # fields of KEY=VALUE, and whether the values are numbers
    parameters: list[inspect.Parameter] = []
    for item in sorted(fields(kind), key=lambda item: item.name != positional):
        hint: Any = hints[item.name]
        name, default = item.name, _default(item)
        flag = "--" + name.replace("_", "-")
        if isinstance(default, dict):
            pairs[name] = hint == dict[str, float]
            flag, hint, default = flag.removesuffix("s"), list[str], []
        how = inspect.Parameter.POSITIONAL_ONLY if name == positional else inspect.Parameter.KEYWORD_ONLY
        extra = Parameter(
            name=None if name == positional else flag,
            env_var=ENVIRONMENT_PREFIX + name.upper(),
            help=docs[name],
            negative=None if hint is bool else (),
        )
        annotation = Annotated[hint, extra]
        parameters.append(inspect.Parameter(name, how, default=default, annotation=annotation))

    def command(*words: str, **values: Any) -> int:
        values |= zip([positional], words, strict=False)
        for name, number in pairs.items():
            if name in values:
                flag = "--" + name.replace("_", "-").removesuffix("s")
                values[name] = (parse_numbers if number else parse_pairs)(values[name], flag)
        return run(kind(**values))

    command.__doc__ = kind.__doc__
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default
