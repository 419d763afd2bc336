"""The supervisor's shell with real processes that only pretend to work."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tokenmill.errors import ConfigError, TokenmillError
from tokenmill.operate.deploy.shared_port import can_share_ports
from tokenmill.spec.load import dump_factory
from tokenmill.spec.process import FrontendConfig


def _load(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


plants = _load("plants")
factory, Plant, running, alive = plants.factory, plants.Plant, plants.running, plants.alive


async def test_starts_all_and_drains_front_doors_first(tmp_path):
    plant = Plant(tmp_path, factory(prefill=(1, "slow-drain"), decode=(2, "slow-drain"), front="slow-drain"))
    async with running(plant) as task:
        await plant.until(lambda status: status.ready)
        status = await plant.ask(op="status")
        assert [row.name for row in status.processes] == ["prefill-0", "decode-0", "decode-1", "frontend-0"]
        assert status.urls == ["http://127.0.0.1:1"]
        await plant.ask(op="down")
        assert await task == 0
    stops = plant.events("stop")
    assert stops[0] == ("stop", "frontend")
    assert sorted(stops[1:]) == [("stop", "decode-0"), ("stop", "decode-1"), ("stop", "prefill-0")]


async def test_leaves_nothing_in_the_state_folder_but_the_applied_file(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "good")))
    async with running(plant) as task:
        await plant.until(lambda status: status.ready)
        run_dir = Path(plant.state.read_record().run_dir)
        assert run_dir.is_dir()
        await plant.ask(op="down")
        await task
    assert sorted(path.name for path in plant.state.path.iterdir()) == ["factory.yaml", "lock"]
    assert not run_dir.exists()


async def test_a_crashed_process_comes_back(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "crash-after-ready")))
    async with running(plant):
        await plant.until(lambda status: status.processes[0].restarts == 1 and status.ready)
    assert plant.events("ready").count(("ready", "decode-0")) == 2


async def test_a_killed_process_comes_back(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "good")))
    async with running(plant):
        await plant.until(lambda status: status.ready)
        victim = (await plant.ask(op="status")).processes[0].pid
        os.kill(victim, signal.SIGKILL)
        await plant.until(lambda status: status.ready and status.processes[0].pid != victim)


@pytest.mark.parametrize(
    ("mode", "message"), [("fault", "no such model"), ("mute-fault", "--dtype: no float7")]
)
async def test_a_fault_of_configuration_ends_the_start_with_its_message(tmp_path, mode, message):
    plant = Plant(tmp_path, factory(prefill=(1, "good"), decode=(1, mode)))
    async with running(plant) as task:
        with pytest.raises(ConfigError, match=f"^decode-0: {message}$"):
            await task
    assert plant.events("start").count(("start", "decode-0")) == 1


async def test_a_command_that_cannot_be_started_ends_the_start(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "good")), argv=lambda _config: [str(tmp_path / "nothing")])
    async with running(plant) as task:
        with pytest.raises(TokenmillError, match="cannot be started"):
            await task


async def test_output_is_shown_with_the_name_and_in_bounded_lines(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "noisy")))
    async with running(plant):
        await plant.until(lambda status: status.ready)
    shown = [line for line in plant.lines.read_text().splitlines() if line.startswith("[decode-0] xx")]
    assert sum(line.count("x") for line in shown) == 100_000
    assert max(map(len, shown)) < 8300


async def test_scale_up_and_down(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "good")))
    async with running(plant):
        await plant.until(lambda status: status.ready)
        await plant.ask(op="scale", replicas={"decode": 3})
        await plant.until(lambda status: status.ready and len(status.processes) == 4)
        await plant.ask(op="scale", replicas={"decode": 1})
        await plant.until(lambda status: len(status.processes) == 2)
        with pytest.raises(ConfigError, match=r'no stage "decod"\. Did you mean "decode"\?'):
            await plant.ask(op="scale", replicas={"decod": 1})
    assert plant.events("start").count(("start", "decode-0")) == 1


@pytest.mark.skipif(not can_share_ports(), reason="this system deals no connections out")
async def test_front_doors_share_a_port_that_is_kept_and_can_be_scaled(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "good"), fronts=2))
    ports = []

    def noting(config):
        if isinstance(config, FrontendConfig):
            ports.append((config.port, config.reuse_port, config.own_listen))
        return plants.fake_argv(plant.trace)(config)

    plant.supervisor._argv = noting
    async with running(plant):
        await plant.until(lambda status: status.ready)
        ((port, shared, own),) = set(ports)
        assert port > 0
        assert shared
        assert own
        await plant.ask(op="scale", replicas={"frontend": 3})
        await plant.until(lambda status: status.ready and len(status.processes) == 4)
        assert ports == [(port, True, own)] * 3
        await plant.ask(op="scale", replicas={"frontend": 1})
        await plant.until(lambda status: status.ready and len(status.processes) == 2)
        assert ports[3:] == [(port, True, "")]
    assert plant.events("start").count(("start", "decode-0")) == 1


async def test_apply_replaces_what_changed_new_before_old(tmp_path):
    plant = Plant(tmp_path, factory(prefill=(1, "good"), decode=(1, "good")))
    changed = factory(prefill=(1, "good"), decode=(1, "slow-drain"))
    async with running(plant):
        await plant.until(lambda status: status.ready)
        await plant.ask(op="apply", factory=dump_factory(changed))
        await plant.until(lambda status: status.ready and len(status.processes) == 3)
        await plant.until(lambda _: ("stop", "decode-0") in plant.events())
        mine = [what for what, name in plant.events() if name == "decode-0"]
        assert mine == ["start", "ready", "start", "ready", "stop"]
    assert plant.events("start").count(("start", "prefill-0")) == 1


async def test_a_bad_file_or_request_is_refused_and_changes_nothing(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "good")))
    async with running(plant):
        await plant.until(lambda status: status.ready)
        with pytest.raises(ConfigError, match="stages: is missing"):
            await plant.ask(op="apply", factory="metadata: {name: mill}")
        with pytest.raises(ConfigError, match="no operation"):
            await plant.ask(op="dance")
        assert (await plant.ask(op="status")).ready


async def test_who_ignores_the_stop_is_killed_on_the_second(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "stubborn")))
    async with running(plant) as task:
        await plant.until(lambda status: status.ready)
        os.kill(os.getpid(), signal.SIGTERM)
        await plant.until(lambda _: ("ignored", "decode-0") in plant.events())
        os.kill(os.getpid(), signal.SIGINT)
        assert await asyncio.wait_for(task, 20) == 0


async def test_cancelling_the_supervisor_kills_its_processes(tmp_path):
    plant = Plant(tmp_path, factory(decode=(2, "stubborn")))
    async with running(plant) as task:
        await plant.until(lambda status: status.ready)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_name_runs_once(tmp_path):
    plant = Plant(tmp_path, factory(decode=(1, "good")))
    other = Plant(tmp_path, factory(decode=(1, "good")))
    other.err.close()
    async with running(plant):
        await plant.until(lambda status: status.ready)
        with pytest.raises(TokenmillError, match=rf'"mill" is running already \(pid {os.getpid()}\)'):
            await other.supervisor.run()
        assert (await plant.ask(op="status")).ready


async def test_pinned_workers_run_on_their_core_with_one_thread(tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    spec = factory(decode=(1, "good"))
    stages = [msgspec.structs.replace(spec.stages[0], cpus=[cores[-1]])]
    plant = Plant(tmp_path, msgspec.structs.replace(spec, stages=stages))
    async with running(plant):
        await plant.until(lambda status: status.ready)
        pid = (await plant.ask(op="status")).processes[0].pid
        assert os.sched_getaffinity(pid) == {cores[-1]}
        assert sorted(os.sched_getaffinity(0)) == cores
    threads = {line.split()[1]: line.split()[3] for line in plant.trace.read_text().splitlines()}
    assert threads["decode-0"] == "1"


async def test_a_state_folder_with_a_long_path_works(tmp_path):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    plant = Plant(deep, factory(decode=(1, "good")))
    async with running(plant):
        await plant.until(lambda status: status.ready)


async def test_children_end_when_the_supervisor_is_killed_and_the_next_start_cleans_up(tmp_path):
    program = (
        "import asyncio, importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('plants', {str(Path(plants.__file__))!r})\n"
        "plants = importlib.util.module_from_spec(spec); spec.loader.exec_module(plants)\n"
        f"plant = plants.Plant({str(tmp_path)!r}, plants.factory(decode=(2, 'good')))\n"
        "asyncio.run(plant.supervisor.run())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        plant = Plant(tmp_path, factory(decode=(1, "good")))
        try:
            await wait_for(lambda: len(plant.events("ready")) == 3)
        finally:
            process.kill()
    await wait_for(lambda: len(plant.events("orphaned")) == 3)
    await wait_for(lambda: not any(alive(pid) for pid in plant.pids()))
    assert plant.state.stale
    run_dir = Path(plant.state.read_record().run_dir)

    async with running(plant):
        await plant.until(lambda status: status.ready)
        assert not plant.state.stale
    assert not run_dir.exists()


async def wait_for(condition, seconds=20.0):
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("did not come about")
