"""The command line: one thin function a command; the work is done elsewhere.

Imports stand inside the functions, so that ``tokenmill --help`` is quick and no command pays for another.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cyclopts import App

DEBUG_VARIABLE = "TOKENMILL_DEBUG"
"""Set to 1 it shows tracebacks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 for good, 1 for failed, 2 for bad usage or a bad file."""
    from tokenmill.errors import ConfigError, TokenmillError

    words = list(sys.argv[1:] if argv is None else argv)
    try:
        status = _plain(words)
        return _parsed(words) if status is None else status
    except ConfigError as error:
        return _complain(error.message, 2, error)
    except TokenmillError as error:
        return _complain(error.message, 1, error)
    except KeyboardInterrupt:
        return 130


def _plain(words: list[str]) -> int | None:
    """Run a process of a factory that its supervisor started; None: the words are a person's."""
    if not words or words[0] not in ("frontend", "worker"):
        return None
    from tokenmill.spec.plain_flags import read_plain
    from tokenmill.spec.process import ENVIRONMENT_PREFIX, FrontendConfig, WorkerConfig

    _log_without_rich()
    if words[0] == "frontend":
        front = read_plain(FrontendConfig, words[1:], os.environ, ENVIRONMENT_PREFIX)
        return None if front is None else _frontend(front)
    work = read_plain(WorkerConfig, words[1:], os.environ, ENVIRONMENT_PREFIX)
    return None if work is None else _worker(work)


def _log_without_rich() -> None:
    """Import structlog, which takes rich along where there is one: 4 MB in each process, for nothing here."""
    if "structlog" not in sys.modules and "rich" not in sys.modules:
        sys.modules["rich"] = None  # type: ignore[assignment]
        import structlog  # noqa: F401

        del sys.modules["rich"]


def _parsed(words: list[str]) -> int:
    from cyclopts import CycloptsError

    try:
        app = make_app()
        status = app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        return _complain(str(error), 2, error)
    return status if isinstance(status, int) else 0


def make_app() -> App:
    """Put the commands together."""
    from cyclopts import App, Parameter

    import tokenmill
    from tokenmill.operate.deploy.flags import config_command
    from tokenmill.operate.deploy.quick import ServeOptions
    from tokenmill.operate.profile.options import ProfileOptions
    from tokenmill.spec.process import FrontendConfig, WorkerConfig

    app = App(
        name="tokenmill",
        version=tokenmill.__version__,
        help="An inference factory for LLMs.",
        help_format="plaintext",
    )
    app.command(config_command(ServeOptions, _serve, positional="model"), name="serve")
    for command in (up, down, status, scale, doctor, schema, render, plan):
        app.command(command)
    # --compare A.yaml B.yaml
    app.command(simulate, default_parameter=Parameter(consume_multiple=True))
    app.command(import_, name="import")
    app.command(config_command(FrontendConfig, _frontend), name="frontend")
    app.command(config_command(WorkerConfig, _worker), name="worker")
    app.command(config_command(ProfileOptions, _profile, positional="model"), name="profile")
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


def _profile(options: Any) -> int:
    from tokenmill.operate.profile.command import profile

    return profile(options)


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


def render(factory: Path, /, *, target: str = "commands", json: bool = False) -> int:
    """Show what bringing a factory up would run, without running it.

    Args:
        factory: The factory file (YAML or JSON).
        target: commands: the command of each replica's engine, with its environment and GPUs.
        json: Write JSON.
    """
    from tokenmill.operate.deploy.rendering import render

    return render(factory, target=target, as_json=json)


def plan(
    factory: Path,
    /,
    *,
    fleet: Path | None = None,
    rate: float | None = None,
    isl: float | None = None,
    osl: float | None = None,
    cached: float = 0.0,
    trace: Path | None = None,
    reuse_s: float = 300.0,
    ttft_ms: float | None = None,
    itl_ms: float | None = None,
    percentile: float | None = None,
    objective: Literal["cost", "gpus", "power"] = "cost",
    model: str = "",
    profile: tuple[Path, ...] = (),
    spot: bool = True,
    json: bool = False,
    write: Path | None = None,
) -> int:
    """Choose GPUs, parallelism and replicas for each stage, and say what latencies and tokens will cost.

    Args:
        factory: The factory file: model and service level.
        fleet: The fleet file: GPUs, prices, links. Without it: the GPUs that the factory's stages name.
        rate: Requests a second; without it, and without a trace, as many as the fleet can serve.
        isl: Tokens of a prompt.
        osl: Tokens of an answer.
        cached: Of a prompt, tokens that are found in a cache.
        trace: A trace of requests (Mooncake's .jsonl or Azure's .csv), in place of isl and osl.
        reuse_s: A trace's prefix counts as cached when it came within so many seconds before.
        ttft_ms: Time to first token in milliseconds, in place of the factory's.
        itl_ms: Time between tokens in milliseconds, in place of the factory's.
        percentile: The share of requests in percent that must be within both, in place of the factory's.
        objective: What is to be least.
        model: Which of the factory's models, where it has several.
        profile: Measured profile files, whose times go before all others.
        spot: Use spot nodes, too.
        json: Write JSON.
        write: Write the planned factory file here.
    """
    from tokenmill.operate.plan.command import PlanOptions
    from tokenmill.operate.plan.command import plan as run

    return run(
        factory,
        PlanOptions(
            fleet=fleet,
            rate=rate,
            isl=isl,
            osl=osl,
            cached=cached,
            trace=trace,
            reuse_s=reuse_s,
            ttft_ms=ttft_ms,
            itl_ms=itl_ms,
            percentile=percentile,
            objective=objective,
            model=model,
            profiles=profile,
            spot=spot,
            json=json,
            write=write,
        ),
    )


def simulate(
    factory: Path | None = None,
    /,
    *,
    trace: str = "",
    scenario: Path | None = None,
    seed: int | None = None,
    speedup: float | None = None,
    limit: int | None = None,
    compare: tuple[Path, ...] = (),
    fleet: Path | None = None,
    profile: tuple[Path, ...] = (),
    gpu: str = "",
    model: str = "",
    ttft_ms: float | None = None,
    itl_ms: float | None = None,
    percentile: float | None = None,
    report: Path | None = None,
    json: bool = False,
    json_file: Path | None = None,
) -> int:
    """Run a factory on a virtual clock, and say what latencies, throughput and cost it would have.

    Args:
        factory: The factory file (YAML or JSON).
        trace: A trace of requests (Mooncake's JSON lines or Azure's CSV), or a made-up load such as
            poisson:rate=5,prompt=3000,output=150,seconds=600 (even, poisson, gamma, bursts, diurnal, chats).
        scenario: The scenario file: load, failures, scaling, start-up times, classes, prices.
        seed: Of all that is drawn, in place of the scenario's.
        speedup: All arrivals so many times as dense.
        limit: Only the first so many requests.
        compare: Factory files to set beside each other, on the same requests.
        fleet: The fleet file: prices and links of the GPUs.
        profile: Measured profile files, whose times go before all others.
        gpu: The GPU of stages that name none.
        model: Which of the factory's models, where it has several.
        ttft_ms: Time to first token in milliseconds, in place of the factory's.
        itl_ms: Time between tokens in milliseconds, in place of the factory's.
        percentile: The share of requests in percent that must be within both, in place of the factory's.
        report: Write a page with charts here (HTML).
        json: Write JSON to standard output.
        json_file: Write JSON here.
    """
    from tokenmill.operate.simulate.command import SimulateOptions
    from tokenmill.operate.simulate.command import simulate as run

    return run(
        [*([factory] if factory is not None else []), *compare],
        SimulateOptions(
            trace=trace,
            scenario=scenario,
            seed=seed,
            speedup=speedup,
            limit=limit,
            fleet=fleet,
            profiles=profile,
            gpu=gpu,
            model=model,
            ttft_ms=ttft_ms,
            itl_ms=itl_ms,
            percentile=percentile,
            report=report,
            json=json,
            json_file=json_file,
        ),
    )


def import_(file: Path, /, *, output: Path | None = None, name: str = "") -> int:
    """Turn a Dynamo DynamoGraphDeployment or a KServe LLMInferenceService into a factory file.

    What could not be carried over is told on standard error.

    Args:
        file: The deployment (YAML or JSON).
        output: Where the factory file goes; else to standard output.
        name: Which deployment, if the file has several.
    """
    from tokenmill.operate.deploy.importing import import_file

    return import_file(file, output=output, name=name)


def schema(file: Literal["factory", "fleet", "scenario", "report"] = "factory", /) -> int:
    """Write a file's JSON schema, for editors; report: of what simulate --json writes.

    Args:
        file: Which kind of file.
    """
    import msgspec

    from tokenmill.spec.fleet import Fleet
    from tokenmill.spec.scenario import Scenario
    from tokenmill.spec.schema import factory_schema, file_schema

    if file == "factory":
        tree = factory_schema()
    elif file == "report":
        from tokenmill.operate.simulate.summary import Summary

        tree = msgspec.json.schema(Summary)
    else:
        tree = file_schema(Fleet if file == "fleet" else Scenario)
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(tree)).decode() + "\n")
    return 0
