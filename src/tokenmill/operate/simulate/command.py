"""``tokenmill simulate``: files and flags in, a simulated run out, as a table, as JSON and as a page.

The shell around ``simulate``: it reads files, shows progress and prints. It must not decide anything.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from tokenmill.clock import SystemClock
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.errors import ConfigError
from tokenmill.operate.simulate.loads import open_trace
from tokenmill.operate.simulate.scenes import Declared, Staged, Surroundings, read_factory, staged
from tokenmill.operate.simulate.summary import Summary
from tokenmill.operate.simulate.summing import Ran, summary_of
from tokenmill.profiles.fleets import load_inventory
from tokenmill.profiles.profile_file import load_profile
from tokenmill.profiles.sources import step_time_source
from tokenmill.simulate.plant import Progress
from tokenmill.simulate.plant import simulate as run_scene
from tokenmill.simulate.traces import Trace
from tokenmill.spec.factory import Slo
from tokenmill.spec.load_scenario import load_scenario
from tokenmill.spec.scenario import Scenario, ScenarioMetadata

NO_SCENARIO: Final = Scenario(metadata=ScenarioMetadata(name="none"))


class SimulateOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line gives beside the factory file; as ``tokenmill simulate --help`` says it."""

    trace: str = ""
    scenario: Path | None = None
    seed: int | None = None
    speedup: float | None = None
    limit: int | None = None
    fleet: Path | None = None
    profiles: tuple[Path, ...] = ()
    gpu: str = ""
    model: str = ""
    ttft_ms: float | None = None
    itl_ms: float | None = None
    percentile: float | None = None
    report: Path | None = None
    json: bool = False
    json_file: Path | None = None


def simulate(factories: Sequence[Path], options: SimulateOptions) -> int:
    """Run factories on the same requests and report; returns 1 when one has served none. Raises
    ConfigError."""
    if not factories:
        raise ConfigError("factory: name a factory file (YAML), or several with --compare", param="factory")
    _check(options)
    declared = [read_factory(each, options.model) for each in factories]
    scenario = _scenario(declared, options)
    seed = scenario.seed
    folder = options.scenario.absolute().parent if options.scenario else Path.cwd()
    trace = open_trace(options.trace, scenario, folder=folder, seed=seed)
    known = _surroundings(scenario, options, seed)
    known = msgspec.structs.replace(known, slo=_level(scenario, declared[0], options))
    plants = [staged(each, known) for each in declared]
    for plant in plants:
        if not any(stage.workers for stage in plant.scene.stages):
            raise ConfigError(f"{plant.name}: no stage has a worker; give replicas", param="stages")
    load = _load_words(options.trace or scenario.trace, trace, scenario)
    summaries = [_run(plant, scenario, trace, load) for plant in plants]
    _report(_told_apart(summaries, declared), options)
    return 0 if all(each.served for each in summaries) else 1


def _check(options: SimulateOptions) -> None:
    for name in ("speedup", "ttft_ms", "itl_ms", "percentile"):
        value = getattr(options, name)
        if value is not None and not (0 < value < float("inf") and (name != "percentile" or value <= 100)):
            raise ConfigError(f"{name}: {value:g} is out of range", param=name)
    for name in ("limit", "seed"):
        value = getattr(options, name)
        if value is not None and value < 0:
            raise ConfigError(f"{name}: {value}; give 0 or more", param=name)
    for name, path in (("report", options.report), ("json-file", options.json_file)):
        if path is not None and not path.absolute().parent.is_dir():
            what = f"there is no folder {path.parent}"
            raise ConfigError(f"{name}: {path} cannot be written: {what}", param=name)
    if options.gpu:
        CATALOGUE.gpu(options.gpu)


def _scenario(declared: list[Declared], options: SimulateOptions) -> Scenario:
    scenario = NO_SCENARIO
    if options.scenario is not None:
        stages: dict[str, int] = {}
        for each in declared:
            for stage in each.stages:
                stages[stage.name] = max(stages.get(stage.name, 0), stage.replicas)
        scenario = load_scenario(
            options.scenario,
            stages=stages,
            is_known=lambda name: CATALOGUE.find(name) is not None,
            known=CATALOGUE.names,
        )
    given: dict[str, Any] = {
        name: value for name in ("seed", "speedup", "limit") if (value := getattr(options, name)) is not None
    }
    return msgspec.structs.replace(scenario, **given)


def _surroundings(scenario: Scenario, options: SimulateOptions, seed: int) -> Surroundings:
    return Surroundings(
        scenario=scenario,
        inventory=load_inventory(options.fleet) if options.fleet is not None else None,
        profiles=[load_profile(each) for each in options.profiles],
        source=step_time_source(profiles=options.profiles),
        gpu=options.gpu,
        seed=seed,
    )


def _level(scenario: Scenario, first: Declared, options: SimulateOptions) -> Slo:
    """The service level that all runs are judged by: the command line's, else the scenario's, else the first
    factory's."""
    given: dict[str, Any] = {
        name: value
        for name in ("ttft_ms", "itl_ms", "percentile")
        if (value := getattr(options, name)) is not None
    }
    return msgspec.structs.replace(scenario.slo or first.factory.slo, **given)


def _load_words(named: str, trace: Trace, scenario: Scenario) -> str:
    speed = f", {scenario.speedup:g} times as dense" if scenario.speedup != 1 else ""
    words = named if ":" in named else Path(named).name
    return f"{words}{speed}: {len(trace.requests)} requests in {trace.length_s:.4g} s"


def _run(plant: Staged, scenario: Scenario, trace: Trace, load: str) -> Summary:
    clock = SystemClock()
    began_s = clock.now()
    with _progress(plant.name, len(trace.requests)) as progress:
        run = run_scene(plant.scene, trace, progress=progress, policy=plant.policy)
    ran = Ran(
        staged=plant,
        scenario=scenario,
        trace=trace,
        load=load,
        run=run,
        wall_s=clock.now() - began_s,
    )
    return summary_of(ran)


@contextmanager
def _progress(name: str, requests: int) -> Iterator[Progress | None]:
    """Show a bar on standard error, where a person looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console  # noqa: PLC0415 -- for people only
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} requests"),
        TextColumn("{task.fields[virtual]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=requests, virtual="")
        yield lambda at_s, done: bar.update(task, completed=done, virtual=f"at {at_s:.0f} s")


def _told_apart(summaries: list[Summary], declared: list[Declared]) -> list[Summary]:
    """Name plants after their files where their factories have one name."""
    names = [each.factory for each in summaries]
    if len(set(names)) == len(names):
        return summaries
    return [
        msgspec.structs.replace(each, factory=f"{each.factory} ({file.path.name})")
        for each, file in zip(summaries, declared, strict=True)
    ]


def _report(summaries: list[Summary], options: SimulateOptions) -> None:
    if options.report is not None:
        from tokenmill.operate.simulate.page import page  # noqa: PLC0415

        _write(page(summaries), options.report, "report")
    text = as_json(summaries)
    if options.json_file is not None:
        _write(text, options.json_file, "json-file")
    if options.json:
        sys.stdout.write(text)
    else:
        from tokenmill.operate.simulate.table import show  # noqa: PLC0415 -- rich is for people only

        show(summaries, report=options.report)


def as_json(summaries: list[Summary]) -> str:
    """Return the JSON: a summary, or of several ``{"version": 1, "runs": [...]}``."""
    tree: object = summaries[0]
    if len(summaries) > 1:
        tree = {"version": summaries[0].version, "runs": summaries}
    return msgspec.json.format(msgspec.json.encode(tree), indent=2).decode() + "\n"


def _write(text: str, path: Path, param: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{param}: {path} cannot be written: {error.strerror}", param=param) from None
