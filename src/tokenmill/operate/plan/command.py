"""``tokenmill plan``: files and flags in, a plan out, as a table, as JSON, and as a factory file.

The shell around ``decide.fleet``: it reads files and prints. It must not decide anything.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from tokenmill.decide.fleet.candidates import find_candidates
from tokenmill.decide.fleet.capacity import Promise
from tokenmill.decide.fleet.catalogue import Gpu
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.fleet.inventory import Inventory, NodeGroup
from tokenmill.decide.fleet.options import Ask, Objective
from tokenmill.decide.fleet.placement import place
from tokenmill.decide.fleet.plans import Plan
from tokenmill.decide.fleet.stock import inventory_of_one
from tokenmill.decide.fleet.workload import Workload, steady
from tokenmill.errors import ConfigError
from tokenmill.operate.plan.demand import Demand, demand_of
from tokenmill.operate.plan.written import planned_factory, tables_of
from tokenmill.profiles.fleets import load_inventory
from tokenmill.profiles.models import load_shape
from tokenmill.profiles.sources import step_time_source
from tokenmill.profiles.step_times_file import save_step_table
from tokenmill.simulate.traces_files import read_trace
from tokenmill.spec.derive import models_of, stages_of
from tokenmill.spec.factory import Factory, Model, Slo
from tokenmill.spec.load import dump_factory, load_factory
from tokenmill.spec.placement import gpus_of_replica

DATABASE_ENGINES: Final = ("vllm", "sglang", "trtllm")
"""Engines whose kernels step times are known of; others are planned as the first."""

_UTILIZATION: Final = "gpu_memory_utilization"


class PlanOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line gives beside the factory file; as ``tokenmill plan --help`` says it."""

    fleet: Path | None = None
    rate: float | None = None
    isl: float | None = None
    osl: float | None = None
    cached: float = 0.0
    trace: Path | None = None
    reuse_s: float = 300.0
    ttft_ms: float | None = None
    itl_ms: float | None = None
    percentile: float | None = None
    objective: Objective = "cost"
    model: str = ""
    profiles: tuple[Path, ...] = ()
    spot: bool = True
    json: bool = False
    write: Path | None = None


def plan(path: Path, options: PlanOptions) -> int:
    """Print the plan; returns 1 when the ask cannot be met. Raises ConfigError."""
    factory = load_factory(path)
    model = _model(factory, options.model)
    slo = _slo(factory, options)
    demand = _demand(options)
    inventory = _inventory(factory, model, options)
    ask = Ask(
        workload=demand.workload,
        promise=Promise(ttft_ms=slo.ttft_ms, itl_ms=slo.itl_ms, percentile=slo.percentile),
        rate_per_s=demand.rate_per_s,
        objective=options.objective,
    )
    engine, arguments = _engine(factory, model)
    candidates, unfit = find_candidates(
        load_shape(model.path, beside=path.absolute().parent),
        inventory,
        step_time_source(profiles=options.profiles),
        engine=engine,
        kv_dtype="fp8" if arguments.get("kv_cache_dtype", "").startswith("fp8") else "",
        utilization=_number(arguments.get(_UTILIZATION, "0.9")),
        longest=demand.workload.longest,
    )
    found = place(ask, candidates, inventory, unfit)
    if options.write is not None and found.best is not None:
        tables = tables_of(found.best, candidates)
        files = {stage: f"{options.write.stem}.{stage}.steps.json" for stage in tables}
        for stage, table in tables.items():
            save_step_table(table, options.write.with_name(files[stage]))
        _write(planned_factory(factory, model, slo, found.best, files), options.write)
    if options.json:
        sys.stdout.write(msgspec.json.format(_as_json(ask, demand, found), indent=2).decode() + "\n")
    else:
        from tokenmill.operate.plan.table import show  # noqa: PLC0415 -- rich is for people only

        show(factory.metadata.name, ask, demand, inventory, found, written=options.write)
    return 0 if found.best is not None else 1


def _model(factory: Factory, name: str) -> Model:
    models = models_of(factory)
    if name:
        named = next((model for model in models if model.name == name), None)
        if named is None:
            names = ", ".join(model.name for model in models)
            raise ConfigError(f'model: the factory has no "{name}"; it has {names}', param="model")
        return named
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise ConfigError(f"model: the factory has several; name one of {names}", param="model")
    return models[0]


def _slo(factory: Factory, options: PlanOptions) -> Slo:
    given: dict[str, Any] = {
        name: value
        for name in ("ttft_ms", "itl_ms", "percentile")
        if (value := getattr(options, name)) is not None
    }
    for name, value in given.items():
        if value <= 0 or (name == "percentile" and value > 100):
            raise ConfigError(f"{name}: {value:g} is out of range", param=name)
    return msgspec.structs.replace(factory.slo, **given)


def _demand(options: PlanOptions) -> Demand:
    if options.rate is not None and options.rate <= 0:
        raise ConfigError(f"rate: {options.rate:g} requests a second; give more than 0", param="rate")
    if options.trace is not None:
        if options.isl is not None or options.osl is not None or options.cached:
            raise ConfigError(
                "trace: it says the lengths itself; leave isl, osl and cached out", param="trace"
            )
        found = demand_of(read_trace(options.trace), reuse_s=options.reuse_s)
        return found if options.rate is None else found.at(options.rate)
    if options.isl is None or options.osl is None:
        raise ConfigError("isl, osl: give tokens of a prompt and of an answer, or a trace", param="isl")
    workload: Workload = steady(options.isl, options.osl, options.cached)
    return Demand(workload=workload, rate_per_s=options.rate)


def _inventory(factory: Factory, model: Model, options: PlanOptions) -> Inventory:
    if options.fleet is not None:
        inventory = load_inventory(options.fleet)
        if options.spot:
            return inventory
        kept = [group for group in inventory.groups if group.availability != "spot"]
        if not kept:
            raise ConfigError("spot: without spot nodes the fleet has none", param="spot")
        return inventory.with_groups(kept)
    return Inventory(_declared(factory, model), {})


def _declared(factory: Factory, model: Model) -> list[NodeGroup]:
    """The GPUs that the factory's own stages are on, where no fleet file says more."""
    numbers: dict[str, int] = {}
    for stage in stages_of(factory, model):
        if stage.gpu:
            gpu = CATALOGUE.gpu(stage.gpu).name
            numbers[gpu] = numbers.get(gpu, 0) + stage.replicas * max(1, gpus_of_replica(stage))
    groups = [group for gpu, number in numbers.items() for group in _servers(CATALOGUE.gpu(gpu), number)]
    if not groups:
        message = "fleet: give a fleet file, or name the GPU of each stage in the factory file (stages[].gpu)"
        raise ConfigError(message, param="fleet")
    return groups


def _servers(gpu: Gpu, number: int) -> list[NodeGroup]:
    """So many GPUs in full servers, and one that is not full."""
    rest = number % gpu.gpus_per_node
    groups = inventory_of_one(gpu, number - rest).groups if number > rest else []
    if rest:
        smaller = inventory_of_one(gpu, rest).groups
        groups = [*groups, *(msgspec.structs.replace(each, name=f"{each.name}-rest") for each in smaller)]
    return groups


def _engine(factory: Factory, model: Model) -> tuple[str, dict[str, str]]:
    """Whose kernels, and with which settings."""
    for stage in stages_of(factory, model):
        if stage.engine in DATABASE_ENGINES:
            return stage.engine, {key.replace("-", "_"): value for key, value in stage.engine_args.items()}
    return DATABASE_ENGINES[0], {}


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise ConfigError(
            f"engine_args: {_UTILIZATION} is {text}; give a share from 0 to 1", param="engine_args"
        )
    return value


def _write(factory: Factory, path: Path) -> None:
    try:
        path.write_text(dump_factory(factory), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"write: {path} cannot be written: {error.strerror}", param="write") from None


def _as_json(ask: Ask, demand: Demand, found: Plan) -> bytes:
    workload = ask.workload
    tree = {
        "ask": {
            "rate_per_s": ask.rate_per_s,
            "objective": ask.objective,
            "slo": ask.promise,
            "prompt_tokens": workload.prompt_tokens,
            "cached_tokens": workload.cached_tokens,
            "output_tokens": workload.output_tokens,
            "burstiness": workload.burstiness,
            "shapes": len(workload.shapes),
            "from": demand.words,
        },
        "plan": found,
    }
    return msgspec.json.encode(tree)
