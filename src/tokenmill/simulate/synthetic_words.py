"""A load in one line, such as ``poisson:rate=5,prompt=3000,output=150,seconds=600``.

Exists so that the command line and scenario files need no file for a made-up trace. It must not know how
traces are made.
"""

from __future__ import annotations

import math
from typing import Final, get_args

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.simulate.synthetic import Kind, Load
from tokenmill.spec.problems import did_you_mean, one_of

KINDS: Final[tuple[str, ...]] = get_args(Kind)

_OF_KIND: Final = {
    "cv": "gamma",
    "times": "bursts",
    "burst_s": "bursts",
    "calm_s": "bursts",
    "swing": "diurnal",
    "period_s": "diurnal",
    "turns": "chats",
    "think_s": "chats",
    "answer_ms": "chats",
    "longest": "chats",
}

_EXAMPLE: Final = "poisson:rate=5,prompt=3000,output=150,seconds=600"


def is_load(words: str) -> bool:
    """Whether ``words`` are meant as a load, not as a file's name."""
    kind, colon, _ = words.partition(":")
    return kind in KINDS and (bool(colon) or words == kind)


def parse_load(words: str, *, param: str = "trace") -> Load:
    """Return the load that ``words`` say. Raises ConfigError, naming the field and the fix."""
    kind, _, rest = words.partition(":")
    if kind not in KINDS:
        hint = did_you_mean(kind, KINDS)
        raise ConfigError(f'{param}: "{kind}" is not {one_of(KINDS)}.{hint}', param=param)
    given: dict[str, str | float] = {"kind": kind}
    for pair in filter(None, (each.strip() for each in rest.split(","))):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals:
            raise _bad(param, kind, pair, f"give name=value, for example {_EXAMPLE}")
        given[name] = _number(param, kind, name, value, given)
    load = _load(param, kind, given)
    if not load.seconds and not load.requests:
        raise _bad(param, kind, "seconds", "say where it ends: seconds=600, or requests=1000")
    return load


def _number(param: str, kind: str, name: str, value: str, given: dict[str, str | float]) -> float:
    known = [each for each in Load.__struct_fields__ if each != "kind" and _OF_KIND.get(each, kind) == kind]
    if name not in known:
        what = f"only {_OF_KIND[name]} has it." if name in _OF_KIND else "unknown."
        raise _bad(param, kind, name, what + (did_you_mean(name, known) or f" Known: {', '.join(known)}."))
    if name in given:
        raise _bad(param, kind, name, "is here twice; remove one")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise _bad(param, kind, name, f'"{value}" is no number')
    return int(number) if number.is_integer() else number


def _load(param: str, kind: str, given: dict[str, str | float]) -> Load:
    try:
        return msgspec.convert(given, Load)
    except msgspec.ValidationError as error:
        words, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`")
        raise _bad(param, kind, name, f"{given.get(name)}: {words[:1].lower()}{words[1:]}") from error


def _bad(param: str, kind: str, name: str, what: str) -> ConfigError:
    return ConfigError(f"{param}: {kind}: {name}: {what}", param=param)
