"""Engines over doubles in the test's own event loop."""

from __future__ import annotations

from pathlib import Path

from tests.serve.engines.attached import Attached

from tokenmill.clock import SystemClock
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import EngineInfo, Sink
from tokenmill.serve.engines.sglang.engine import SglangEngine
from tokenmill.serve.engines.sglang.launch import MODES, SglangOptions
from tokenmill.testing.sglang_double import DoubleSettings, SglangDouble
from tokenmill.testing.sglang_double.settings import EventsConfig

MODEL = str(Path(__file__).parent / "model")
NAME = "double"


def settings(role: Role = Role.BOTH, **fields: object) -> DoubleSettings:
    values: dict[str, object] = {
        "model_path": MODEL,
        "served_model_name": NAME,
        "mode": MODES[role],
        "page_size": 16,
        "bootstrap_port": 0,
        "enable_metrics": True,
        "incremental": True,
        "vocab_size": 1024,
        "eos_token_id": 2,
        "step_s": 0.0005,
        "bootstrap_timeout_s": 20.0,
        **fields,
    }
    return DoubleSettings(**values)  # type: ignore[arg-type]


class DoubledEngine(Attached[SglangEngine]):
    """An engine attached to a double that starts and stops with it."""

    def __init__(self, role: Role = Role.BOTH, **fields: object) -> None:
        self.double = SglangDouble(settings(role, **fields))
        self.role = role

    async def start(self, sink: Sink) -> EngineInfo:
        await self.double.start()
        options = SglangOptions(model=MODEL, model_name=NAME, role=self.role, attach=self.double.url)
        self.engine = SglangEngine(options, SystemClock())
        return await self.engine.start(sink)

    async def stop(self) -> None:
        await self.engine.stop()
        await self.double.close()


def events(folder: object) -> EventsConfig:
    """A publisher on Unix sockets in a test's folder."""
    return EventsConfig(
        publisher="zmq", endpoint=f"ipc://{folder}/events.sock", replay_endpoint=f"ipc://{folder}/replay.sock"
    )
