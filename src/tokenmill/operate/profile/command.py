"""``tokenmill profile``: sweep, fit, say what was found, write the file and the picture."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from tokenmill.clock import SystemClock
from tokenmill.decide.fleet.gpus import CATALOGUE
from tokenmill.decide.perf.fitting import NotEnough, find_knee, fit_error, fit_table, steadied
from tokenmill.decide.perf.profile import Knee, Profile
from tokenmill.decide.perf.step_time import StepTimeModel
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.profile.engine_probe import EngineProbe
from tokenmill.operate.profile.http_probe import HttpProbe
from tokenmill.operate.profile.machine import this_machine, versions
from tokenmill.operate.profile.options import ProfileOptions
from tokenmill.operate.profile.points import Limits, Point
from tokenmill.operate.profile.probe import Probe, ProbeFacts
from tokenmill.operate.profile.runs import Step, between_steps_ms, measurements_of
from tokenmill.operate.profile.sweep import Effort, sweep
from tokenmill.profiles.models import load_shape
from tokenmill.profiles.profile_file import save_profile
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.opening import open_engine
from tokenmill.serve.engines.remote.keys import read_key

_LEAST_MS: Final = 0.01
_SHOWN: Final = ((1, 128), (4, 512), (1, 2048))


def profile(options: ProfileOptions) -> int:
    """Measure, and write the profile. Raises ConfigError and TokenmillError."""
    _check(options)
    console = Console(file=sys.stderr)
    facts, steps = asyncio.run(_measure(options, console))
    found = _fitted(options, facts, steps)
    save_profile(found, Path(options.out))
    if options.plot:
        from tokenmill.operate.profile.plot import draw  # noqa: PLC0415 - needs the extra

        draw(found, Path(options.plot))
    _report(found, options, console)
    return 0


def _check(options: ProfileOptions) -> None:
    for name, least in (("max_prefill", 32), ("max_batch", 1), ("max_context", 64), ("repeats", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name}: must be {least} or more", param=name)
    if options.gpu:
        CATALOGUE.gpu(options.gpu)
    if options.plot:
        from tokenmill.operate.profile.plot import require  # noqa: PLC0415 - needs the extra

        require()


async def _measure(options: ProfileOptions, console: Console) -> tuple[ProbeFacts, list[Step]]:
    """Start the probe and sweep. Cancelled: what was started is stopped."""
    probe = _probe(options)
    try:
        facts = await probe.start()
        limits = _limits(options, facts)
        effort = Effort(options.repeats, options.longest_step_ms)

        def told(point: Point, step_ms: float) -> None:
            kind = "prefill" if point.output_tokens == 1 else "decode "
            console.print(
                f"{kind} {point.prompts:4} x {point.prompt_tokens:6} tokens {step_ms:10.2f} ms",
                highlight=False,
            )

        return facts, await sweep(probe, limits, effort, facts.method, told)
    finally:
        await probe.close()


def _probe(options: ProfileOptions) -> Probe:
    clock = SystemClock()
    if options.url:
        key = read_key(options.attach_key, os.environ)
        return HttpProbe(options.url, clock, model=options.model, key=key, timeout_s=options.point_timeout_s)
    # As workers are started: a waiting thread must not spin on a core that another thread needs.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # One step must hold a whole batch, or the largest could not be measured; no prefix may help.
    config = replace(
        options,
        role=Role.BOTH,
        prefix_cache=False,
        token_budget=options.token_budget or options.max_prefill + options.max_batch,
        prefill_budget=options.prefill_budget or options.max_prefill,
        max_sequences=max(options.max_batch, 4),
    )
    return EngineProbe(open_engine(config, None, clock), clock, timeout_s=options.point_timeout_s)


def _limits(options: ProfileOptions, facts: ProbeFacts) -> Limits:
    return Limits(
        prefill_tokens=options.max_prefill,
        sequences=min(options.max_batch, facts.max_sequences or options.max_batch),
        context_tokens=min(options.max_context, facts.max_model_len or options.max_context),
        # Room for the block that each sequence leaves half empty.
        kv_tokens=int(facts.kv_tokens * 0.9) or sys.maxsize,
    )


def _fitted(options: ProfileOptions, facts: ProbeFacts, steps: list[Step]) -> Profile:
    measurements = measurements_of(step for step in steps if step.step_ms >= _LEAST_MS)
    kv_bytes = _kv_bytes_per_token(options, facts)
    used, disturbed = steadied(measurements)
    try:
        table = fit_table(used, kv_bytes_per_token=kv_bytes, kv_capacity_tokens=facts.kv_tokens)
        knee = find_knee(used)
    except NotEnough as error:
        raise TokenmillError(f"the sweep cannot be fitted: {error}; raise max_prefill or max_batch") from None
    machine = this_machine()
    gpu = CATALOGUE.find(options.gpu or machine.gpu) if not options.url or options.gpu else None
    return Profile(
        model=options.model or facts.model,
        engine=facts.engine,
        machine=machine,
        versions=versions(),
        method=facts.method,
        measurements=measurements,
        table=table,
        knee=knee,
        fit=fit_error(table, used),
        disturbed=disturbed,
        between_steps_ms=between_steps_ms(steps),
        taken=datetime.fromtimestamp(SystemClock().wall(), UTC).date().isoformat(),
        dtype=options.dtype,
        gpu=gpu.name if gpu is not None else "",
        tp=options.tp,
        pp=options.pp,
        dp=options.dp,
        ep=options.ep,
    )


def _kv_bytes_per_token(options: ProfileOptions, facts: ProbeFacts) -> float:
    """As the model's shape has it; 0 where that is not known here."""
    try:
        return load_shape(options.model if not options.url else facts.model).kv_bytes_per_token()
    except ConfigError:
        return 0.0


def knee_words(knee: Knee) -> str:
    """Say what was found about saturation."""
    where = (
        f"{knee.tokens} tokens"
        if knee.low == knee.high
        else f"{knee.tokens} tokens ({knee.low} to {knee.high})"
    )
    if not knee.reached:
        return f"the device is not saturated by {where}, the largest batch measured: raise --max-prefill"
    return (
        f"a prefill batch of {where} saturates the device, at {knee.tokens_per_s:,.0f} tokens/s; "
        "a larger one only delays its first prompt"
    )


def _report(found: Profile, options: ProfileOptions, console: Console) -> None:
    times: StepTimeModel = TableStepTime(found.table)
    table = Table(title=f"{found.model} on {found.engine} ({found.method})", title_justify="left")
    for heading in ("batch", "context", "decode step ms"):
        table.add_column(heading, justify="right")
    for batch, context in _SHOWN:
        table.add_row(str(batch), str(context), f"{times.decode_ms(batch, batch * context):.2f}")
    console.print(table)
    fit = found.fit
    errors = f"off by {fit.mean_error:.1%} in the mean, nine in ten within {fit.p90_error:.1%}"
    files = options.out + (f", {options.plot}" if options.plot else "")
    sys.stdout.write(f"{knee_words(found.knee)}\n")
    sys.stdout.write(f"fit: {errors}, {fit.measurements} measurements\n")
    if found.between_steps_ms:
        sys.stdout.write(f"between two steps: {found.between_steps_ms:.2f} ms\n")
    sys.stdout.write(f"written: {files}\n")
    if found.disturbed:
        console.print(
            "other programs disturbed the machine: fitted to the shorter times; better measure again"
        )
