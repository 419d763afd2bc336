"""Factories and supervisors for the shell's tests, with stand-ins for the processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from tokenmill.clock import SystemClock
from tokenmill.operate.deploy.control import ControlRequest, ask
from tokenmill.operate.deploy.display import LineDisplay
from tokenmill.operate.deploy.state import StateFolder
from tokenmill.operate.deploy.supervisor import Supervisor
from tokenmill.spec.load import parse_factory
from tokenmill.spec.process import FrontendConfig

FAKE = Path(__file__).with_name("fake_process.py")


def factory(name="mill", *, front="good", port=0, fronts=1, **stages):
    """``stages``: name=(replicas, mode); the front door's mode travels in the model's name."""
    lines = [
        f"metadata: {{name: {name}}}",
        f"model: {{name: {front}}}",
        f"frontend: {{port: {port}, replicas: {fronts}}}",
        "stages:",
        *(
            f"  - {{name: {stage}, replicas: {replicas}, engine: sim, engine_args: {{mode: {mode}}}}}"
            for stage, (replicas, mode) in stages.items()
        ),
    ]
    return parse_factory("\n".join(lines), "test")


def fake_argv(trace):
    def argv(config):
        front = isinstance(config, FrontendConfig)
        name = "frontend" if front else f"{config.stage}-{config.replica}"
        mode = config.model_name if front else config.engine_args["mode"]
        kind = "frontend" if front else "worker"
        command = [sys.executable, "-S", "-E", str(FAKE), kind, name, mode]
        return [*command, str(config.parent_fd), str(config.ready_fd), str(trace)]

    return argv


class Plant:
    """A supervisor in this process."""

    def __init__(self, root, factory, *, display=None, argv=None):
        self.trace = Path(root) / "trace"
        self.trace.touch()
        self.state = StateFolder(Path(root), factory.metadata.name)
        self.lines = Path(root) / "lines"
        self.err = self.lines.open("w")
        self.supervisor = Supervisor(
            factory,
            self.state,
            clock=SystemClock(),
            display=display or LineDisplay(self.err, self.err),
            environment=dict(os.environ),
            argv=argv or fake_argv(self.trace),
        )

    def events(self, *words):
        """What the stand-ins noted, as (what, name)."""
        rows = [line.split() for line in self.trace.read_text().splitlines()]
        return [(row[0], row[1]) for row in rows if not words or row[0] in words]

    def pids(self):
        return {int(line.split()[2]) for line in self.trace.read_text().splitlines()}

    async def ask(self, **request):
        return (await asyncio.to_thread(ask, self.state, ControlRequest(**request))).status

    async def until(self, condition, seconds=20.0):
        async with asyncio.timeout(seconds):
            while not condition(await self.ask(op="status")):
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(plant):
    """Run the plant inside; at the end it is stopped, and none of its processes lives."""
    task = asyncio.create_task(plant.supervisor.run())
    try:
        async with asyncio.timeout(20):
            while not task.done():
                record = plant.state.read_record()
                if record and record.pid == os.getpid() and plant.state.control.exists():
                    break
                await asyncio.sleep(0.01)
        yield task
    finally:
        if not task.done():
            await plant.ask(op="down", at_once=True)
        await asyncio.gather(task, return_exceptions=True)
        plant.err.close()
        assert not [pid for pid in plant.pids() if alive(pid)]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
