"""What stands behind one worker of a stage: its step times, its KV memory, its GPUs and their price.

Step times come from the stage's measured profile, else from those who know its GPU (given profiles, the
database, the roofline); the ``sim`` engine plays its own. It must not know batches or routing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.decide.fleet.inventory import NodeGroup
from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.model_shape import ModelShape
from tokenmill.decide.perf.profile import Profile
from tokenmill.decide.perf.source import NoTimes, ReplicaAsk, ReplicaTimes, StepTimeSource
from tokenmill.decide.perf.step_time import StepTimeModel
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.errors import ConfigError
from tokenmill.operate.simulate.limits import Memory, sim_memory
from tokenmill.operate.simulate.speeds import Faster, with_pause
from tokenmill.profiles.profile_file import load_profile
from tokenmill.serve.engines.opening import sim_settings
from tokenmill.spec.mixes import EMBEDDED_ENGINES, side_of_stage
from tokenmill.spec.placement import gpus_of_replica
from tokenmill.spec.process import WorkerConfig
from tokenmill.spec.stage import Stage

_UTILIZATION: Final[Mapping[str, str]] = {
    "vllm": "gpu_memory_utilization",
    "sglang": "mem_fraction_static",
    "trtllm": "kv_cache_config.free_gpu_memory_fraction",
}
"""What engines call the share of a GPU's memory that they take."""

_KERNELS: Final = "vllm"
"""Whose kernels stand for an embedded engine's on a GPU."""


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker runs on. ``times``: of its steps; ``origin`` and ``expected_error``: where they are
    from, and the share by which they may be off. ``gpu``: the catalogue's name, "" for none. ``gpus``: of one
    worker. ``dollars_per_hour``: of one worker; None: not known. ``group``: the nodes it stands in."""

    times: StepTimeModel
    memory: Memory
    origin: str
    expected_error: float = 0.0
    note: str = ""
    gpu: str = ""
    gpus: int = 0
    dollars_per_hour: float | None = None
    group: NodeGroup | None = None


class Given(msgspec.Struct, frozen=True, kw_only=True):
    """What is known beside the stage: the model's shape (None: nobody knows it), the stage's GPUs, profiles
    that were given for all, and who is asked for step times."""

    shape: ModelShape | None
    why_no_shape: str = ""
    group: NodeGroup | None = None
    profiles: Sequence[Profile] = ()
    source: StepTimeSource


def device_of(stage: Stage, config: WorkerConfig, given: Given) -> Device:
    """Find out what a worker runs on. ``config``: what its process is told. Raises ConfigError that says what
    to give where nothing is known."""
    gpus = max(1, gpus_of_replica(stage)) if given.group is not None else 0
    if stage.engine == "sim":
        device = _sim(config, given)
    else:
        profile = _profile(stage, config, given)
        device = _measured(profile, stage, given) if profile is not None else _asked(stage, given)
    group = given.group
    return msgspec.structs.replace(
        device, gpus=gpus, gpu=group.gpu.name if group is not None else "", group=group
    )


def _sim(config: WorkerConfig, given: Given) -> Device:
    """Its own timing, whatever the GPU; ``speedup`` 0 is no waiting at all."""
    settings = sim_settings(config, Path())
    longest = given.shape.max_model_len if given.shape is not None else 0
    times: StepTimeModel = settings.step_time
    if settings.speedup != 1:
        times = Faster(times, settings.speedup)
    if config.profile:
        times = with_pause(times, load_profile(Path(config.profile)).between_steps_ms)
    note = "its jitter is left out" if settings.jitter else ""
    return Device(times=times, memory=sim_memory(settings, longest), origin="sim", note=note)


def _profile(stage: Stage, config: WorkerConfig, given: Given) -> Profile | None:
    """The stage's own, or one that was given of this engine and model and of no GPU in the catalogue."""
    if config.profile:
        return load_profile(Path(config.profile))
    if given.group is not None:
        return None  # the source looks at the GPU, too
    names = {_last(name) for name in (config.model, config.model_name) if name} or {""}
    fitting = [
        each
        for each in given.profiles
        if each.engine == stage.engine and (_last(each.model) in names or names == {""})
    ]
    return fitting[-1] if fitting else None


def _last(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()


def _measured(profile: Profile, stage: Stage, given: Given) -> Device:
    memory = Memory(tokens=profile.table.kv_capacity_tokens, bytes_per_token=profile.table.kv_bytes_per_token)
    if given.shape is not None:
        memory = msgspec.structs.replace(
            memory,
            bytes_per_token=memory.bytes_per_token or given.shape.kv_bytes_per_token(0.0),
            longest=given.shape.max_model_len,
        )
    if not memory.tokens and given.group is not None:
        answer = _answer(stage, given)
        if isinstance(answer, ReplicaTimes):
            memory = msgspec.structs.replace(memory, tokens=answer.memory.kv_capacity_tokens)
    return Device(
        times=with_pause(TableStepTime(profile.table), profile.between_steps_ms),
        memory=memory,
        origin="measured",
        expected_error=profile.fit.mean_error,
        note=f"measured {profile.taken}",
    )


def _asked(stage: Stage, given: Given) -> Device:
    if given.group is None:
        raise _nothing_known(stage)
    if given.shape is None:
        raise ConfigError(given.why_no_shape, param="model")
    answer = _answer(stage, given)
    if isinstance(answer, NoTimes):
        raise ConfigError(f"stage {stage.name}: {answer.reason}", param="stages")
    fit = answer.memory
    if not fit.fits:
        needs = (
            f"weights and activations need {fit.lacking_gib():.0f} GiB more on each {given.group.gpu.name}"
        )
        raise ConfigError(
            f"stage {stage.name}: {needs}; raise parallel.tp or take larger GPUs", param="stages"
        )
    note = answer.note
    if stage.engine in EMBEDDED_ENGINES:
        note = f"{note}; " * bool(note) + f"kernels of {_KERNELS}"
    return Device(
        times=answer.times,
        memory=Memory(
            tokens=fit.kv_capacity_tokens,
            bytes_per_token=fit.kv_bytes_per_token,
            longest=given.shape.max_model_len,
        ),
        origin=answer.origin,
        expected_error=answer.expected_error,
        note=note,
    )


def _answer(stage: Stage, given: Given) -> ReplicaTimes | NoTimes:
    if given.shape is None or given.group is None:
        return NoTimes(reason=given.why_no_shape)
    embedded = stage.engine not in _UTILIZATION
    parallel = stage.parallel
    return given.source.replica(
        ReplicaAsk(
            shape=given.shape,
            gpu=given.group.gpu,
            parallel=type(parallel)() if stage.engine in EMBEDDED_ENGINES else parallel,
            engine=_KERNELS if embedded else stage.engine,
            kv_dtype="fp8" if side_of_stage(stage, {}).kv_dtype.startswith("fp8") else "",
            utilization=_utilization(stage),
            within=_within(given.group, stage),
        )
    )


def _within(group: NodeGroup, stage: Stage) -> Link | None:
    return group.within if stage.parallel.pp == 1 else None


def _utilization(stage: Stage) -> float:
    name = _UTILIZATION.get(stage.engine, "")
    for key, text in stage.engine_args.items():
        if key.replace("-", "_") == name:
            try:
                share = float(text)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise ConfigError(
                    f"stage {stage.name}: engine_args: {key} is {text}; give a share from 0 to 1",
                    param="engine_args",
                )
            return share
    return 0.9


def _nothing_known(stage: Stage) -> ConfigError:
    if stage.engine in EMBEDDED_ENGINES or stage.device == "cpu":
        measure = f"measure it: tokenmill profile --engine {stage.engine} --out p.json, then profile: p.json"
    else:
        measure = "give a measured profile: profile: p.json"
    what = f"stage {stage.name}: nothing is known of its step times"
    return ConfigError(f"{what}; name its GPU (gpu: H100, or --gpu), or {measure}", param="stages")
