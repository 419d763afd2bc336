"""From a factory file and a scenario to what is simulated, with what the report must know beside it.

Settings reach the router, admission and the step schedulers by the functions that the processes use. It must
not know traces, nor how anything is simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from tokenmill.decide.fleet.inventory import Inventory
from tokenmill.decide.perf.model_shape import ModelShape
from tokenmill.decide.perf.profile import Profile
from tokenmill.decide.perf.source import StepTimeSource
from tokenmill.decide.router.router import PolicyMaker
from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.preflight import grounded
from tokenmill.operate.simulate.devices import Device, Given, device_of
from tokenmill.operate.simulate.limits import is_early, limits_of
from tokenmill.operate.simulate.places import Places, Standing, links_of
from tokenmill.profiles.models import load_shape
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.profiled import step_table_of
from tokenmill.serve.frontend.admission_settings import admission_settings
from tokenmill.serve.frontend.router_policies import policy_maker
from tokenmill.serve.frontend.router_settings import router_settings
from tokenmill.simulate.scene import (
    LinkScene,
    LinkSlow,
    Scene,
    SceneEvent,
    StageScaled,
    StageScene,
    WorkerFails,
    WorkerSlow,
    check_scene,
)
from tokenmill.simulate.timing import ModelTimes
from tokenmill.spec.derive import models_of, stages_of, to_frontend_config, worker_config
from tokenmill.spec.factory import Factory, Model, Slo
from tokenmill.spec.load import load_factory
from tokenmill.spec.scenario import Scenario, StageSetting
from tokenmill.spec.stage import Stage


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """A factory file that was read, and which of its models is simulated."""

    path: Path
    factory: Factory
    model: Model

    @property
    def stages(self) -> list[Stage]:
        """The model's own."""
        return stages_of(self.factory, self.model)


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What is known beside the factory file. ``gpu``: of stages that name none. ``slo``: to be judged by, in
    place of the scenario's and the factory's."""

    scenario: Scenario
    inventory: Inventory | None = None
    profiles: Sequence[Profile] = ()
    source: StepTimeSource
    gpu: str = ""
    seed: int = 0
    slo: Slo | None = None


class Staged(msgspec.Struct, frozen=True, kw_only=True):
    """A factory as it is simulated, and what stands behind each stage, by its name. ``policy``: makes a
    router policy of the user's own."""

    name: str
    scene: Scene
    slo: Slo
    devices: dict[str, Device]
    notes: list[str]
    policy: PolicyMaker | None = None


def read_factory(path: Path, model: str) -> Declared:
    """Read a factory file. ``model``: which of several. Raises ConfigError."""
    factory = grounded(load_factory(path), path.absolute().parent)
    models = models_of(factory)
    named = [each for each in models if not model or each.name == model]
    if len(named) != 1:
        names = ", ".join(each.name for each in models)
        what = f'{path.name} has no "{model}"; it has {names}' if model else f"name one of {names}"
        raise ConfigError(f"model: {what}", param="model")
    return Declared(path=path, factory=factory, model=named[0])


def staged(declared: Declared, known: Surroundings) -> Staged:
    """Return what is simulated. Raises ConfigError that names the stage and what to give."""
    factory, scenario = declared.factory, known.scenario
    places = Places(known.inventory, scenario.prices)
    shape, why = _shape(declared)
    devices: dict[str, Device] = {}
    scenes: list[StageScene] = []
    notes: list[str] = []
    for declared_stage in declared.stages:
        stage = _on_gpu(declared_stage, known.gpu)
        given = Given(
            shape=shape,
            why_no_shape=why,
            group=places.group_of(stage),
            profiles=known.profiles,
            source=known.source,
        )
        setting = scenario.stages.get(stage.name, StageSetting())
        device = _device(declared, stage, given, setting)
        hosts = tuple(setting.hosts) or places.hosts_of(stage, given.group)
        start_s = scenario.start_s if setting.start_s is None else setting.start_s
        scenes.append(_stage(declared, stage, device, hosts, start_s))
        devices[stage.name] = device
        notes += _notes(stage, device)
    standing = [
        Standing(role=each.role, group=devices[each.name].group, gpus=devices[each.name].gpus)
        for each in scenes
    ]
    slo = known.slo or scenario.slo or factory.slo
    scene = _scene(declared, known, scenes, links_of(standing, known.inventory, scenario), slo)
    check_scene(scene)
    return Staged(
        name=factory.metadata.name,
        scene=scene,
        slo=slo,
        devices=devices,
        notes=[*places.notes, *notes, *_left_out(scenario, set(devices))],
        policy=policy_maker(factory.router.policy),
    )


def _device(declared: Declared, stage: Stage, given: Given, setting: StageSetting) -> Device:
    config = replace(worker_config(declared.factory, stage, 0), model_name=declared.model.name)
    device = device_of(stage, config, given)
    return msgspec.structs.replace(device, dollars_per_hour=_price(device, setting))


def _stage(
    declared: Declared, stage: Stage, device: Device, hosts: tuple[str, ...], start_s: float
) -> StageScene:
    config = worker_config(declared.factory, stage, 0)
    gpu = device.group.gpu if device.group is not None else None
    return StageScene(
        name=stage.name,
        role=stage.role,
        workers=stage.replicas,
        batching=limits_of(config, device.memory, gpu, device.gpus),
        times=ModelTimes(device.times),
        model=declared.model.name,
        device=device.gpu or stage.engine,
        start_s=start_s,
        hosts=hosts,
        kv_bytes_per_token=device.memory.bytes_per_token,
        step_table=step_table_of(config),
    )


def _scene(
    declared: Declared,
    known: Surroundings,
    stages: list[StageScene],
    links: tuple[LinkScene, LinkScene],
    slo: Slo,
) -> Scene:
    factory = declared.factory
    front = to_frontend_config(factory)
    prefill = [each for each in declared.stages if each.role is Role.PREFILL]
    return Scene(
        stages=stages,
        links=links[0],
        same_host=links[1],
        router=router_settings(front),
        admission=admission_settings(front),
        early_handoff=all(is_early(worker_config(factory, each, 0)) for each in prefill),
        most_attempts=factory.migration.max_attempts,
        front_s=known.scenario.front_ms / 1000,
        message_delay_s=known.scenario.message_delay_ms / 1000,
        seed=known.seed,
        events=list(_events(known.scenario, {each.name for each in stages})),
        slo=slo,
    )


def _on_gpu(stage: Stage, gpu: str) -> Stage:
    """The GPU that was given on the command line, for stages that run on one and don't say which."""
    if stage.gpu or not gpu or stage.engine == "sim" or stage.device == "cpu":
        return stage
    return msgspec.structs.replace(stage, gpu=gpu)


def _shape(declared: Declared) -> tuple[ModelShape | None, str]:
    try:
        return load_shape(declared.model.path, beside=declared.path.absolute().parent), ""
    except ConfigError as error:
        return None, error.message


def _price(device: Device, setting: StageSetting) -> float | None:
    if setting.dollars_per_hour is not None:
        return setting.dollars_per_hour
    return device.gpus * device.group.dollars_per_hour if device.group is not None else None


def _notes(stage: Stage, device: Device) -> Iterator[str]:
    if device.note:
        yield f"{stage.name}: {device.note}"
    if stage.parallel.pp > 1:
        yield f"{stage.name}: a pipeline works on one batch at a time here"


def _left_out(scenario: Scenario, stages: set[str]) -> Iterator[str]:
    """With several factories a scenario may name stages that not all of them have."""
    events = scenario.events
    named = {
        *scenario.stages,
        *(each.stage for each in events.failures),
        *(each.stage for each in events.stragglers),
        *(each.stage for each in events.scaling),
    }
    for stage in sorted(named - stages):
        yield f"the scenario's stage {stage} is not in this factory"


def _events(scenario: Scenario, stages: set[str]) -> Iterator[SceneEvent]:
    """Those of the scenario that are about stages which this factory has."""
    events = scenario.events
    for failure in events.failures:
        if failure.stage in stages:
            yield WorkerFails(
                at_s=failure.at_s,
                stage=failure.stage,
                index=failure.worker,
                back_after_s=failure.back_after_s,
            )
    for each in events.stragglers:
        if each.stage in stages:
            yield WorkerSlow(
                at_s=each.at_s,
                until_s=each.until_s,
                stage=each.stage,
                index=each.worker,
                factor=each.factor,
            )
    for scaling in events.scaling:
        if scaling.stage in stages:
            yield StageScaled(at_s=scaling.at_s, stage=scaling.stage, workers=scaling.workers)
    for slow in events.slow_links:
        yield LinkSlow(at_s=slow.at_s, until_s=slow.until_s, host=slow.host or None, factor=slow.factor)
