"""Does the simulator say what a real factory does? Both serve the same requests; their figures are compared.

    python -m benchmarks.simulate_fidelity [--cases sim-aggregated ...] [--rounds 3]

For each case: the engine is profiled with ``tokenmill profile``; the factory file, which names that profile,
is started with ``tokenmill up`` (a frontend and one process a worker); an open-loop trace is sent to it over
HTTP on loopback; and ``tokenmill simulate`` is given the same factory file and the same trace. What the way
between client and worker takes is measured once, on a factory whose engine takes no time (``engine: sim,
speedup: 0``), and given to the simulator as the scenario's ``front_ms``.

A round is one trace, with a seed of its own, in both worlds. Written down are medians over the rounds, and
all rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.factories import free_port, served
from benchmarks.going_first import going_first
from benchmarks.machine import RESULTS, machine, write_result
from benchmarks.open_loop import Arrival, Sample, Shape, run
from tokenmill.operate.simulate.scenes import Staged, Surroundings, read_factory, staged
from tokenmill.profiles.profile_file import load_profile
from tokenmill.profiles.sources import step_time_source
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.record import RunRecord
from tokenmill.simulate.report import quantile
from tokenmill.simulate.synthetic import make_trace
from tokenmill.simulate.synthetic_words import parse_load
from tokenmill.simulate.traces import Trace, TracedRequest
from tokenmill.spec.scenario import Scenario, ScenarioMetadata
from tokenmill.testing.checkpoints import make_checkpoint

Figures = dict[str, float]

SIM_DEVICE = {
    "fixed_ms": 15,
    "prefill_token_ms": 0.08,
    "prefill_context_ms": 5e-6,
    "decode_sequence_ms": 0.5,
    "decode_context_ms": 2e-3,
}
"""A device so slow that two cores have time for frontend, workers and load generator."""

SIM_SWEEP = ("--max-prefill=1024", "--max-batch=32", "--max-context=1024", "--repeats=2")
TORCH_SWEEP = ("--max-prefill=192", "--max-batch=8", "--max-context=256", "--repeats=3")


@dataclass(frozen=True)
class Case:
    """One plant and its load. ``limit``: the error at p50 and p90 that is accepted, a share."""

    engine: str
    stages: str
    load: str
    limit: float


_SIM_LOAD = "prompt=500,prompt_cv=0.6,output=60,output_cv=0.5,shared=128,systems=3"
_TORCH_LOAD = "prompt=110,prompt_cv=0.4,output=32,output_cv=0.4,shared=64,systems=2"
_TORCH = "engine: torch, threads: 1, dtype: float32, kv_memory_mb: 384, max_sequences: 32, profile: PROFILE"

CASES = {
    "sim-aggregated": Case(
        "sim",
        "  - {name: both, role: both, replicas: 2, engine: sim, profile: PROFILE}\n",
        f"poisson:rate=5,{_SIM_LOAD}",
        0.10,
    ),
    "sim-disaggregated": Case(
        "sim",
        "  - {name: prefill, role: prefill, replicas: 1, engine: sim, profile: PROFILE}\n"
        "  - {name: decode, role: decode, replicas: 2, engine: sim, profile: PROFILE}\n",
        f"poisson:rate=6,{_SIM_LOAD}",
        0.10,
    ),
    "torch-aggregated": Case(
        "torch",
        f"  - {{name: both, role: both, replicas: 1, {_TORCH}}}\n",
        f"poisson:rate=RATE,{_TORCH_LOAD}",
        0.15,
    ),
    "torch-disaggregated": Case(
        "torch",
        f"  - {{name: prefill, role: prefill, replicas: 1, {_TORCH}}}\n"
        f"  - {{name: decode, role: decode, replicas: 1, {_TORCH}}}\n",
        f"poisson:rate=RATE,{_TORCH_LOAD}",
        0.15,
    ),
}

FIGURES = ("ttft_p50_ms", "ttft_p90_ms", "itl_p50_ms", "itl_p90_ms", "output_tokens_per_s")
"""Those that have a limit."""


# The real factory ----------------------------------------------------------------------------------------


def factory_file(stages: str, port: int, model: str, profile: Path | None) -> str:
    """Write a factory file; ``model``: a folder, or "" for the model that ships with the package."""
    path = f", path: {model}" if model else ""
    return (
        "apiVersion: tokenmill/v1\nkind: Factory\nmetadata: {name: fidelity}\n"
        f"model: {{name: bench{path}}}\nfrontend: {{port: {port}}}\nlog: {{level: warning}}\n"
        f"stages:\n{stages.replace('PROFILE', str(profile))}"
    )


def measure_profile(engine: str, model: str, out: Path) -> None:
    """Run ``tokenmill profile``."""
    words = [sys.executable, "-m", "tokenmill", "profile", *([model] if model else [])]
    words += [f"--engine={engine}", f"--out={out}"]
    if engine == "sim":
        words += [f"--engine-arg={name}={value}" for name, value in SIM_DEVICE.items()]
        words += SIM_SWEEP
    else:
        words += ["--threads=1", "--dtype=float32", "--kv-memory-mb=384", *TORCH_SWEEP]
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)


def prompts_of(trace: Trace, vocab: range, seed: int) -> Iterator[list[int]]:
    """Make token ids: blocks with the same id have the same tokens, all else is drawn anew."""
    blocks: dict[int, list[int]] = {}
    chance = random.Random(seed)
    size = trace.prefix_block_tokens
    for request in trace.requests:
        head: list[int] = []
        for prefix_id in request.prefix_ids:
            if prefix_id not in blocks:
                blocks[prefix_id] = chance.choices(vocab, k=size)
            head += blocks[prefix_id]
        head = head[: request.prompt_tokens]
        yield head + chance.choices(vocab, k=request.prompt_tokens - len(head))


async def serve_trace(port: int, trace: Trace, seed: int) -> list[Sample]:
    """Send the trace to the factory on ``port``."""
    arrivals = [
        Arrival(request.at_s, Shape("", request.prompt_tokens, request.output_tokens, 1.0), prompt, 0)
        for request, prompt in zip(trace.requests, prompts_of(trace, range(10, 2000), seed), strict=True)
    ]
    return await run("127.0.0.1", port, "bench", arrivals, timeout_s=60)


def real_figures(samples: list[Sample], tokens: int) -> Figures:
    """Figures of a real run, ``tokens``: that were asked for, so that events of several tokens count as such.
    Raises RuntimeError when a request failed."""
    failed = [sample for sample in samples if sample.error or not sample.tokens]
    if failed:
        raise RuntimeError(f"{len(failed)} requests failed: {failed[0].error or 'no tokens'}")
    gaps_ms = sorted(gap * 1000 for sample in samples for gap in sample.gaps_s)
    ends = [sample.due_s + sample.ttft_s + sum(sample.gaps_s) for sample in samples]
    return _figures(
        [sample.ttft_s * 1000 for sample in samples],
        [(sample.ttft_s + sum(sample.gaps_s)) * 1000 for sample in samples],
        (quantile(gaps_ms, 0.5), quantile(gaps_ms, 0.9)),
        tokens,
        max(ends) - samples[0].due_s,
    )


def _figures(
    ttft_ms: list[float], whole_ms: list[float], itl_ms: tuple[float, float], tokens: int, span_s: float
) -> Figures:
    ttft_ms, whole_ms = sorted(ttft_ms), sorted(whole_ms)
    return {
        "ttft_p50_ms": quantile(ttft_ms, 0.5),
        "ttft_p90_ms": quantile(ttft_ms, 0.9),
        "itl_p50_ms": itl_ms[0],
        "itl_p90_ms": itl_ms[1],
        "output_tokens_per_s": tokens / span_s,
        "whole_p50_ms": quantile(whole_ms, 0.5),
        "whole_p90_ms": quantile(whole_ms, 0.9),
        "tokens": tokens,
    }


# The simulated one ---------------------------------------------------------------------------------------


def predicted_figures(record: RunRecord) -> Figures:
    """Figures of a simulated run. Raises RuntimeError when a request was refused."""
    if not all(request.served for request in record.requests):
        raise RuntimeError("the simulated factory refused requests")
    return _figures(
        [request.ttft_ms for request in record.requests],
        [request.whole_ms for request in record.requests],
        (record.gaps.quantile_ms(0.5), record.gaps.quantile_ms(0.9)),
        sum(request.output_tokens for request in record.requests),
        record.makespan_s,
    )


def plant_of(factory: Path, front_ms: float) -> Staged:
    """Read the factory file as ``tokenmill simulate`` does."""
    scenario = Scenario(metadata=ScenarioMetadata(name="fidelity"), front_ms=front_ms)
    return staged(read_factory(factory, ""), Surroundings(scenario=scenario, source=step_time_source()))


# Both ----------------------------------------------------------------------------------------------------


def measure_front_ms(folder: Path) -> list[float]:
    """Return the times to first token, milliseconds, of short requests, one at a time, on a factory whose
    engine takes no time: a process a role, as the measured ones have."""
    stages = "  - {name: both, role: both, replicas: 1, engine: sim, engine_args: {speedup: 0}}\n"
    port = free_port()
    shape = Shape("", 64, 8, 1.0)
    chance = random.Random(0)
    prompts = [chance.choices(range(10, 2000), k=64) for _ in range(60)]
    arrivals = [Arrival(number * 0.05, shape, prompt, 0) for number, prompt in enumerate(prompts)]
    with served(factory_file(stages, port, "", None), folder, port):
        samples = asyncio.run(run("127.0.0.1", port, "bench", arrivals, timeout_s=30))
    return [sample.ttft_s * 1000 for sample in samples[10:]]


def trace_of(case: Case, rate: float, seconds: float, seed: int) -> Trace:
    """Make the round's trace, its lengths held within what the profile's sweep covers."""
    load = case.load.replace("RATE", str(rate))
    trace = make_trace(parse_load(f"{load},seconds={seconds}"), seed)
    longest = 1000 if case.engine == "sim" else 250
    return trace.with_requests(_cut(request, longest) for request in trace.requests)


def _cut(request: TracedRequest, longest: int) -> TracedRequest:
    return msgspec.structs.replace(
        request,
        prompt_tokens=min(longest, request.prompt_tokens),
        output_tokens=max(4, min(200, request.output_tokens)),
    )


def measure_round(
    case: Case, model: str, folder: Path, trace: Trace, seed: int, front_ms: float
) -> dict[str, object]:
    """Serve the trace in both worlds; return figures and errors. ``folder`` has the profile."""
    profile = load_profile(folder / "profile.json")
    port = free_port()
    factory = factory_file(case.stages, port, model, folder / "profile.json")
    warm_up = _warm_up(case.engine, profile.knee.tokens)
    with served(factory, folder, port):
        asyncio.run(serve_trace(port, warm_up, seed + 1000))
        before, began = _busy_s(), os.times().elapsed
        samples = asyncio.run(serve_trace(port, trace, seed))
        busy = (_busy_s() - before) / (os.times().elapsed - began)
    real = real_figures(samples, trace.output_tokens)
    predicted = predicted_figures(simulate(plant_of(folder / "factory.yaml", front_ms).scene, trace))
    errors = {name: predicted[name] / real[name] - 1 for name in real if name != "tokens"}
    return {
        "seed": seed,
        "requests": len(trace.requests),
        "cores_busy": round(busy, 2),
        "profile": {
            "fit_mean_error": round(profile.fit.mean_error, 4),
            "disturbed": profile.disturbed,
            "knee_tokens": profile.knee.tokens,
            "between_steps_ms": round(profile.between_steps_ms, 3),
        },
        "real": {name: round(value, 3) for name, value in real.items()},
        "predicted": {name: round(value, 3) for name, value in predicted.items()},
        "error": {name: round(error, 4) for name, error in errors.items()},
    }


def _warm_up(engine: str, knee_tokens: int) -> Trace:
    """What a process does for the first time (imports, memory, and with the embedded engine kernels for each
    number of tokens in a step, some milliseconds each) is no part of the comparison."""
    longest = knee_tokens + 8 if engine == "torch" else 6
    ones = [TracedRequest(0.12 * tokens, tokens, 1) for tokens in range(1, longest)]
    together = [TracedRequest(0.12 * longest + 0.02 * number, 40, 8) for number in range(6)]
    return Trace(ones + together)


def _busy_s() -> float:
    """Seconds that all cores together have worked since the machine started, for whomever."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(word) for word in words]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def measure_case(name: str, options: argparse.Namespace, front_ms: float, folder: Path) -> dict[str, object]:
    """Profile, then all rounds."""
    case = CASES[name]
    model = str(make_checkpoint(folder / "model", size="80m")) if case.engine == "torch" else ""
    rounds = []
    for number in range(options.rounds):
        if number == 0 or case.engine == "torch":
            # Compute on shared cores is now faster, now slower: predict from what was true just before.
            measure_profile(case.engine, model, folder / "profile.json")
        seed = options.seed + number
        trace = trace_of(case, options.rate, options.seconds, seed)
        one = measure_round(case, model, folder, trace, seed, front_ms)
        rounds.append(one)
        show(name, one, case.limit)
    return {
        "limit": case.limit,
        "load": case.load.replace("RATE", str(options.rate)),
        "median": _medians(rounds),
        "rounds": rounds,
    }


def _medians(rounds: list[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Medians over the rounds, and the largest error of any."""
    whole: dict[str, dict[str, float]] = {}
    for name in (*FIGURES, "whole_p50_ms", "whole_p90_ms"):
        columns = {kind: [one[kind][name] for one in rounds] for kind in ("real", "predicted", "error")}  # type: ignore[index]
        whole[name] = {kind: round(statistics.median(values), 4) for kind, values in columns.items()}
        whole[name]["error_least"] = min(columns["error"])
        whole[name]["error_most"] = max(columns["error"])
    return whole


def show(name: str, one: dict[str, object], limit: float) -> None:
    """Print a round."""
    print(f"\n{name}, seed {one['seed']}: {one['requests']} requests, {one['cores_busy']} cores busy")
    print(one["profile"])
    print(f"{'':22}{'real':>10}{'predicted':>11}{'error':>9}")
    real, predicted, error = one["real"], one["predicted"], one["error"]
    for figure in error:  # type: ignore[attr-defined]
        off = error[figure]  # type: ignore[index]
        mark = " *" if figure in FIGURES and abs(off) > limit else ""
        print(f"{figure:22}{real[figure]:10.2f}{predicted[figure]:11.2f}{off:+9.1%}{mark}")  # type: ignore[index]
    sys.stdout.flush()


def main() -> None:
    """Run the cases and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=0.9, help="requests a second to the embedded engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", action="store_true", help="go before other programs on these cores (root)")
    parser.add_argument("--dry", action="store_true", help="write no result")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what runs is stopped on the way out
    about = machine()
    with going_first() if options.first else contextlib.nullcontext():
        _run(options, about)


def _run(options: argparse.Namespace, about: dict[str, object]) -> None:
    cases: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        front = measure_front_ms(Path(scratch))
        front_ms = statistics.median(front)
        print(f"front: {front_ms:.2f} ms, {min(front):.2f} to {max(front):.2f}")
        for name in options.cases:
            folder = Path(scratch) / name
            folder.mkdir()
            cases[name] = measure_case(name, options, front_ms, folder)
    if not options.dry:
        _write(options, front_ms, cases, about)


def _write(
    options: argparse.Namespace,
    front_ms: float,
    cases: dict[str, dict[str, object]],
    about: dict[str, object],
) -> None:
    """Cases that were not measured now keep what was measured before."""
    file = RESULTS / "simulate_fidelity.json"
    before = json.loads(file.read_text())["cases"] if file.exists() else {}
    settings = {"first": options.first, "seconds": options.seconds, "front_ms": round(front_ms, 3)}
    now = {name: {**settings, **case} for name, case in cases.items()}
    write_result("simulate_fidelity", {"cases": before | now}, about)


if __name__ == "__main__":
    main()
