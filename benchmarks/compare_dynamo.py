"""Side by side with NVIDIA Dynamo: the same chats, the same model folder, in turn, in one run.

    PYTHONPATH=src python -m benchmarks.compare_dynamo --venv FOLDER [--rounds 3] [--seconds 8]

Installs Dynamo's public wheels into the virtual environment FOLDER unless they are there, makes a
checkpoint folder with a 32,000-token tokenizer, starts both systems with two simulated workers each as fast
as they go, and drives them in turn with ``wrk``. Both render the chat template, tokenize, route, detokenize
and send one event a token; that is looked at before anything is timed. CPU time is the frontend process's
own (``/proc``), so that it says the same on a busy machine; requests a second do not. Writes
benchmarks/results/compare_dynamo.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.factories import free_port
from benchmarks.machine import machine, write_result
from benchmarks.side_by_side import processes
from benchmarks.side_by_side.load import (
    SCENARIOS,
    Answer,
    Client,
    Scenario,
    write_bodies,
    write_script,
    wrk,
)
from benchmarks.side_by_side.model import write_model
from benchmarks.side_by_side.open_streams import HeldStreams
from benchmarks.side_by_side.plants import Plant, dynamo, install_dynamo, tokenmill

AS_FAST_AS_IT_GOES = 1000.0
HELD_PACE = 0.5
"""Slow enough that one client reads a thousand streams without falling behind, which would fill buffers."""
IDLE_S = 2.0
WARM_S = 2
LOOKED_AT = 20
FIRST_BYTES = 150


@dataclass
class Figures:
    """What one system showed in one scenario, one entry a round."""

    cpu_us_a_request: list[float] = field(default_factory=list)
    cpu_us_a_token: list[float] = field(default_factory=list)
    stack_cpu_us_a_request: list[float] = field(default_factory=list)
    requests_a_second: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    wire_bytes_a_token: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        """The middle of each figure's rounds."""
        return {name: round(statistics.median(values), 3) for name, values in asdict(self).items() if values}


def look(plant: Plant, scenario: Scenario, bodies: list[dict[str, object]]) -> dict[str, object]:
    """Check that the plant does the whole work, and say how it cuts its answers. Raises RuntimeError if
    not."""
    client = Client(plant.port)
    try:
        answers = [client.ask({**body, "stream": True}) for body in bodies[:LOOKED_AT]]
    finally:
        client.close()
    for answer in answers:
        if answer.finish_reason != "length":
            raise RuntimeError(f"{plant.name}: ended with {answer.finish_reason!r}, expected length")
    return {
        "text_events_a_token": round(statistics.mean(a.text_events for a in answers) / scenario.tokens, 3),
        "events_a_token": round(statistics.mean(a.events for a in answers) / scenario.tokens, 3),
        "wire_bytes_a_token": round(statistics.mean(a.wire_bytes for a in answers) / scenario.tokens, 1),
    }


def first_bytes(plant: Plant, bodies: list[dict[str, object]]) -> dict[str, float]:
    """Ask one after the other on one connection; returns milliseconds."""
    client = Client(plant.port)
    try:
        answers: list[Answer] = [client.ask(body) for body in bodies[:FIRST_BYTES]]
    finally:
        client.close()
    found: dict[str, float] = {}
    for name in ("first_byte_ms", "first_text_ms", "last_byte_ms"):
        values = sorted(getattr(answer, name) for answer in answers)
        found[f"{name}_p50"] = round(statistics.median(values), 2)
        found[f"{name}_p99"] = round(values[int(len(values) * 0.99)], 2)
    return found


def drive(plant: Plant, scenario: Scenario, script: Path, bodies: Path, seconds: int, turn: int) -> Figures:
    """Load one plant for a while; returns one round."""
    wrk(script, bodies, plant.port, scenario.connections, WARM_S, turn * 131)
    frontend, stack = processes.cpu_s(plant.frontend), processes.cpu_s(plant.workers)
    result = wrk(script, bodies, plant.port, scenario.connections, seconds, turn * 577 + 1000)
    time.sleep(0.2)  # answers cut off at the end are cancelled: their work belongs to this round
    frontend, stack = processes.cpu_s(plant.frontend) - frontend, processes.cpu_s(plant.workers) - stack
    done = result["requests"] + scenario.connections / 2  # those under way at the end were half done
    return Figures(
        cpu_us_a_request=[frontend / done * 1e6],
        cpu_us_a_token=[frontend / done / scenario.tokens * 1e6],
        stack_cpu_us_a_request=[(frontend + stack) / done * 1e6],
        requests_a_second=[result["requests"] / result["wall_s"]],
        p50_ms=[result["p50_ms"]],
        p99_ms=[result["p99_ms"]],
        wire_bytes_a_token=[result["bytes"] / result["requests"] / scenario.tokens],
    )


def compare(options: argparse.Namespace, folder: Path, policy: str) -> dict[str, object]:
    """Run all scenarios under one routing policy."""
    ours, _, theirs = policy.partition("=")
    found: dict[str, object] = {}
    with both(options, folder, (ours, theirs or ours), AS_FAST_AS_IT_GOES) as plants:
        found["idle_frontend_cpu_ms_a_second"] = idle(plants)
        for scenario in options.scenarios:
            found[scenario.key] = compare_scenario(options, folder, scenario, plants)
            show(scenario, found[scenario.key])
        found["memory_after"] = {plant.name: processes.memory_mib(plant.frontend) for plant in plants}
    return found


def compare_scenario(
    options: argparse.Namespace, folder: Path, scenario: Scenario, plants: list[Plant]
) -> dict[str, object]:
    """All rounds of one scenario, the plants in turn, the order turned round each time."""
    path = write_bodies(folder, scenario)
    bodies = [json.loads(line) for line in path.read_text().splitlines()[:400]]
    looks = {plant.name: look(plant, scenario, bodies) for plant in plants}
    if scenario.connections == 1:
        times = {plant.name: first_bytes(plant, bodies[LOOKED_AT:]) for plant in plants}
        return {plant.name: {**looks[plant.name], **times[plant.name]} for plant in plants}
    script = write_script(folder)
    figures = {plant.name: Figures() for plant in plants}
    for turn in range(options.rounds):
        for plant in plants if turn % 2 == 0 else reversed(plants):
            one = drive(plant, scenario, script, path, options.seconds, turn)
            for name, values in asdict(one).items():
                getattr(figures[plant.name], name).extend(values)
    result: dict[str, object] = {
        name: {**looks[name], **values.medians(), "rounds": asdict(values)}
        for name, values in figures.items()
    }
    result["ratios"] = (
        {
            name: round(figures["tokenmill"].medians()[name] / figures["dynamo"].medians()[name], 3)
            for name in ("cpu_us_a_request", "requests_a_second", "p50_ms", "p99_ms")
        }
        if len(figures) == 2
        else {}
    )
    return result


def held_streams(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The frontends' memory with many streams open at a real engine's pace."""
    found: dict[str, object] = {}
    policy = options.policies[0].partition("=")
    with both(options, folder, (policy[0], policy[2] or policy[0]), HELD_PACE) as plants:
        for plant in plants:
            before = processes.memory_mib(plant.frontend)
            with HeldStreams(plant.port, options.open_streams) as held:
                during = processes.memory_mib(plant.frontend)
                found[plant.name] = {"open": held.started, "before": before, "during": during}
    return found


@contextlib.contextmanager
def both(
    options: argparse.Namespace, folder: Path, policies: tuple[str, str], pace: float
) -> Iterator[list[Plant]]:
    """Start the systems that were asked for, ours first."""
    makers: dict[str, Callable[[Path, int], AbstractContextManager[Plant]]] = {
        "tokenmill": lambda at, port: tokenmill(options.source, at, options.model, port, policies[0], pace),
        "dynamo": lambda at, port: dynamo(options.venv, at, options.model, port, policies[1], pace),
    }
    with contextlib.ExitStack() as stack:
        plants = []
        for name in options.only or makers:
            at = folder / name
            at.mkdir(exist_ok=True)
            plants.append(stack.enter_context(makers[name](at, free_port())))
        yield plants


def idle(plants: list[Plant]) -> dict[str, float]:
    """CPU milliseconds a second of frontends nobody talks to: what they would add to another's figures."""
    before = [processes.cpu_s(plant.frontend) for plant in plants]
    time.sleep(IDLE_S)
    return {
        plant.name: round((processes.cpu_s(plant.frontend) - then) / IDLE_S * 1e3, 1)
        for plant, then in zip(plants, before, strict=True)
    }


def show(scenario: Scenario, found: object) -> None:
    """Print a scenario's medians."""
    print(scenario)
    assert isinstance(found, dict)
    for name, figures in found.items():
        shown = {key: value for key, value in figures.items() if key != "rounds"}
        print(f"  {name:10} " + "  ".join(f"{key} {value:g}" for key, value in shown.items()))
    sys.stdout.flush()


def options_of(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=Path(tempfile.gettempdir()) / "dynamo-venv")
    parser.add_argument("--model", type=Path, help="checkpoint folder; made when it is not given")
    parser.add_argument("--source", type=Path, default=Path(__file__).parents[1] / "src")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=8)
    parser.add_argument("--scenarios", default="abcd")
    parser.add_argument(
        "--policies", default="round-robin,kv", help="routing policies; OURS=THEIRS where names differ"
    )
    parser.add_argument(
        "--open-streams", type=int, default=1000, help="for the memory figure; 0 leaves it out"
    )
    parser.add_argument("--only", choices=["tokenmill", "dynamo"], action="append")
    parser.add_argument("--no-write", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    options.scenarios = [scenario for scenario in SCENARIOS if scenario.key in options.scenarios]
    options.policies = options.policies.split(",")
    return options


def main() -> None:
    """Install, start, measure, print, write."""
    options = options_of(sys.argv[1:])
    about = machine()
    result: dict[str, object] = {"seconds": options.seconds, "rounds": options.rounds}
    if options.only != ["tokenmill"]:
        result["dynamo_version"] = install_dynamo(options.venv)
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as temporary:
        folder = Path(temporary)
        options.model = options.model or write_model(folder / "model")
        for policy in options.policies:
            print(f"routing: {policy}")
            result[policy] = compare(options, folder, policy)
            print(f"  frontend memory after {result[policy]['memory_after']}")  # type: ignore[index]
        if options.open_streams:
            result["open_streams"] = held_streams(options, folder)
            print(f"frontend memory with open streams: {result['open_streams']}")
    if not options.no_write:
        print(f"written: {write_result('compare_dynamo', result, about)}")


if __name__ == "__main__":
    main()
