"""Fit the roofline's efficiencies to the kernel database, GPU by GPU, and say how far it stays off.

    PYTHONPATH=src python scripts/fit_efficiencies.py [--write] [GPU ...]

Needs the extra ``perf``. With --write the result goes into src/tokenmill/decide/perf/efficiencies.py;
without GPU names all that the database has are fitted. Each GPU has one set of efficiencies for all
engines, models and parallelisms, found by coordinate search on the mean absolute error of prefill and
decode times (in logarithms, so that halving and doubling weigh alike). What is printed as error for models
left out is the honest one: fitted without that model, judged on it.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.perf.efficiency import Efficiency
from tokenmill.decide.perf.estimates import fit_of
from tokenmill.decide.perf.roofline import Roofline
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk
from tokenmill.decide.perf.step_time import StepTimeModel, decode_batch_ms, prefill_batch_ms, prompts_work
from tokenmill.profiles.database import DatabaseSource
from tokenmill.profiles.kernel_tables import SYSTEMS, require, version
from tokenmill.profiles.models import load_shape
from tokenmill.profiles.table_cache import TableCache
from tokenmill.spec.stage import Parallel

MODELS = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.1-70B-Instruct",
    "nvidia/Llama-3.1-70B-Instruct-FP8",
    "nvidia/Llama-3.3-70B-Instruct-NVFP4",
    "Qwen/Qwen3-32B",
    "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b",
    "openai/gpt-oss-120b",
)
PARALLEL = (Parallel(), Parallel(tp=2), Parallel(tp=4), Parallel(tp=8), Parallel(tp=4, ep=4))
"""Without checkpoints in block-wise FP8: their kernels took two to three times a dense product's time where
these tables were measured, so that they would spoil the fit for all others and still be wrong."""
ENGINE = "vllm"
PROMPTS = ([(64, 0)], [(256, 0)], [(1024, 0)], [(4096, 0)], [(2048, 0)] * 4, [(512, 8000)])
CONTEXTS = ([500], [500] * 16, [3000] * 16, [3000] * 64, [1000] * 128, [16000] * 8)
SCALED = tuple(name for name in Efficiency.__struct_fields__ if name != "fit_error")
MOST = {name: 1.2 for name in SCALED if name not in {"passes", "layer_us", "send_us", "crowding"}}
OUT = Path(__file__).parents[1] / "src/tokenmill/decide/perf/efficiencies.py"

Points = list[tuple[ReplicaAsk, list[float]]]


def times_at(times: StepTimeModel) -> list[float]:
    return [
        *(prefill_batch_ms(times, prompts) for prompts in PROMPTS),
        *(decode_batch_ms(times, contexts) for contexts in CONTEXTS),
    ]


def roofline_at(ask: ReplicaAsk, efficiency: Efficiency) -> list[float]:
    """The same from the roofline itself, without a table between: it is asked a million times."""
    roofline = Roofline(ask.shape, ask.gpu, ask.parallel, efficiency)
    times = []
    for tokens, context in map(prompts_work, PROMPTS):
        times.append(roofline.dense_ms(tokens, 1) + roofline.prefill_attention_ms(tokens, context / tokens))
    for contexts in CONTEXTS:
        count = len(contexts)
        times.append(roofline.dense_ms(count, count) + roofline.decode_attention_ms(count, contexts[0]))
    return times


def measured(gpu_name: str) -> Points:
    """What the database says, for all models and parallelisms that fit on the GPU."""
    gpu = CATALOGUE.gpu(gpu_name)
    database = DatabaseSource(TableCache(Path(tempfile.gettempdir()) / "tokenmill-fit"))
    points: Points = []
    for model in MODELS:
        for parallel in PARALLEL:
            ask = ReplicaAsk(shape=load_shape(model), gpu=gpu, parallel=parallel, engine=ENGINE)
            if (parallel.ep > 1 and ask.shape.experts is None) or not fit_of(ask).fits:
                continue
            answer = database.replica(ask)
            if not isinstance(answer, NoTimes):
                points.append((ask, times_at(answer.times)))
    return points


def logs(efficiency: Efficiency, points: Points) -> list[float]:
    """By how much (in logarithms) the roofline is off, at every point."""
    errors = []
    for ask, wanted in points:
        found = roofline_at(ask, efficiency)
        errors += [math.log(got / want) for got, want in zip(found, wanted, strict=True)]
    return errors


def loss(efficiency: Efficiency, points: Points) -> float:
    return statistics.fmean(map(abs, logs(efficiency, points)))


def fit(points: Points, start: Efficiency) -> Efficiency:
    """Coordinate search: each efficiency is moved up and down until none helps, in steps that shrink."""
    best, best_loss, step = start, loss(start, points), 1.5
    while step > 1.03:
        moved = False
        for name in SCALED:
            for factor in (step, 1 / step):
                value = min(MOST.get(name, math.inf), getattr(best, name) * factor)
                tried = msgspec.structs.replace(best, **{name: value})
                tried_loss = loss(tried, points)
                if tried_loss < best_loss - 1e-5:
                    best, best_loss, moved = tried, tried_loss, True
                    break
        if not moved:
            step = math.sqrt(step)
    return best


def error_of(errors: Sequence[float]) -> float:
    """The mean share by which times are off."""
    return statistics.fmean(math.expm1(abs(error)) for error in errors)


def judged_without(points: Points, fitted: Efficiency) -> float:
    """The error on models left out of the fit, each in turn by family."""
    families = sorted({family(ask) for ask, _ in points})
    if len(families) < 2:
        return error_of(logs(fitted, points))
    errors: list[float] = []
    for left_out in families:
        rest = [(ask, wanted) for ask, wanted in points if family(ask) != left_out]
        others = [(ask, wanted) for ask, wanted in points if family(ask) == left_out]
        errors += logs(fit(rest, fitted), others)
    return error_of(errors)


def family(ask: ReplicaAsk) -> str:
    return ask.shape.name.split("/")[1].split("-")[0]


def usual(fitted: Sequence[Efficiency]) -> Efficiency:
    """The median of all, for GPUs that were not measured."""
    medians = {name: statistics.median(getattr(each, name) for each in fitted) for name in SCALED}
    return Efficiency(**medians)


def rounded(efficiency: Efficiency) -> Efficiency:
    return Efficiency(**{name: round(value, 3) for name, value in msgspec.structs.asdict(efficiency).items()})


def written(fitted: dict[str, Efficiency]) -> str:
    lines = []
    for name, efficiency in sorted(fitted.items()):
        arguments = [
            f"            {key}={value}," for key, value in msgspec.structs.asdict(efficiency).items()
        ]
        lines += [f'        "{name}": Efficiency(', *arguments, "        ),"]
    return f'''"""Efficiencies by GPU, fitted to measured kernels of aiconfigurator-core {version()}, engine
    {ENGINE}.

Written by ``scripts/fit_efficiencies.py``: change that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from tokenmill.decide.perf.efficiency import Efficiency

EFFICIENCIES: Final[Mapping[str, Efficiency]] = MappingProxyType(
    {{
{chr(10).join(lines)}
    }}
)
"""By name in the catalogue. For GPUs that were not measured: "" for those with fast links between GPUs,
"pcie" for others. ``fit_error`` is that on models left out of the fit."""
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gpus", nargs="*", help="names in the catalogue; all by default")
    parser.add_argument("--write", action="store_true", help=f"write {OUT.name}")
    options = parser.parse_args()
    require()
    fitted: dict[str, Efficiency] = {}
    seen: dict[str, Points] = {}
    print(f"{'GPU':14} points  before   fitted   left out   prefill  decode")
    for name in options.gpus or SYSTEMS:
        points = measured(name)
        if not points:
            print(f"{name:14} the database has nothing for {ENGINE}")
            continue
        seen[name] = points
        found = fit(points, Efficiency())
        left_out = judged_without(points, found)
        errors = logs(found, points)
        kinds = len(PROMPTS) + len(CONTEXTS)
        prefill = [error for i, error in enumerate(errors) if i % kinds < len(PROMPTS)]
        decode = [error for i, error in enumerate(errors) if i % kinds >= len(PROMPTS)]
        before, after = error_of(logs(Efficiency(), points)), error_of(errors)
        print(
            f"{name:14} {len(errors):6} {before:7.1%} {after:8.1%} {left_out:10.1%} "
            f"{error_of(prefill):9.1%} {error_of(decode):7.1%}",
            flush=True,
        )
        fitted[name] = rounded(msgspec.structs.replace(found, fit_error=left_out))
    for key, linked in (("", True), ("pcie", False)):
        alike = [name for name in seen if bool(CATALOGUE.gpu(name).peer_gb_per_s) is linked]
        if alike:
            everywhere = usual([fitted[name] for name in alike])
            error = error_of([each for name in alike for each in logs(everywhere, seen[name])])
            print(f"{key or 'fast links':14} the median of {len(alike)}, on all of them: {error:.1%}")
            fitted[key] = rounded(msgspec.structs.replace(everywhere, fit_error=error))
    if options.write:
        OUT.write_text(written(fitted))
    return 0


if __name__ == "__main__":
    sys.exit(main())
