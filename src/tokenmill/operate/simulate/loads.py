"""The requests of a simulation: a trace file or a made-up load, cut, made denser, and sorted into classes.

It must not know factories.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.simulate.synthetic import make_trace
from tokenmill.simulate.synthetic_words import is_load, parse_load
from tokenmill.simulate.traces import Trace, TracedRequest
from tokenmill.simulate.traces_files import read_trace
from tokenmill.spec.scenario import RequestClass, Scenario


def open_trace(words: str, scenario: Scenario, *, folder: Path, seed: int) -> Trace:
    """Return the requests to serve. ``words``: from the command line, "" for the scenario's; ``folder``: a
    scenario's relative file is seen from there. Raises ConfigError."""
    named = words or scenario.trace
    if not named:
        raise ConfigError(
            "trace: give one: a file, or a load such as poisson:rate=5,prompt=3000,output=150,seconds=600",
            param="trace",
        )
    if is_load(named) or (":" in named and "=" in named and not Path(named).exists()):
        trace = make_trace(parse_load(named), seed)
    else:
        path = Path(named).expanduser()
        trace = read_trace(path if words else folder / path)
    if scenario.start_at_s or scenario.end_at_s:
        trace = trace.between(scenario.start_at_s, scenario.end_at_s or trace.length_s + 1)
    if scenario.speedup != 1:
        trace = trace.faster(scenario.speedup)
    if scenario.limit:
        trace = trace.first(scenario.limit)
    if not trace.requests:
        raise ConfigError(f"trace: {named}: there are no requests in it", param="trace")
    return trace.with_requests(_classed(trace, scenario.classes, seed)) if scenario.classes else trace


def _classed(trace: Trace, classes: Sequence[RequestClass], seed: int) -> Iterator[TracedRequest]:
    chance = random.Random(f"{seed} classes")
    known = {each.name: each for each in classes}
    names = [each.name for each in classes]
    shares = [each.share for each in classes]
    rest = 1 - sum(shares)
    for request in trace.requests:
        name = request.klass
        if not name and rest < 1:
            name = chance.choices([*names, ""], [*shares, max(0.0, rest)])[0]
        found = known.get(name)
        if found is None:
            yield request
            continue
        yield msgspec.structs.replace(
            request,
            klass=name,
            tenant=request.tenant or found.tenant,
            priority=request.priority or found.priority,
        )
