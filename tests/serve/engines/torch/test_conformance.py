"""The embedded engine against the suite that every engine must pass, in float32 on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.clock import SystemClock
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import Engine
from tokenmill.serve.engines.opening import open_engine
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.spec.process import WorkerConfig
from tokenmill.testing.checkpoints import TINY_VOCAB_SIZE, make_checkpoint
from tokenmill.testing.engine_conformance import EngineConformance


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama"), "llama", seed=3)


class TestTorchEngine(EngineConformance):
    vocab_size = TINY_VOCAB_SIZE

    @pytest.fixture(autouse=True)
    def _model(self, checkpoint: Path, tmp_path: Path) -> None:
        self.checkpoint, self.tmp_path = checkpoint, tmp_path

    def make_engine(
        self, *, kv_blocks: int = 256, prefill_budget: int = 64, role: Role = Role.BOTH
    ) -> Engine:
        config = WorkerConfig(
            model=str(self.checkpoint),
            engine="torch",
            dtype="float32",
            device="cpu",
            threads=1,
            role=role,
            kv_blocks=kv_blocks,
            prefill_budget=prefill_budget,
            max_model_len=min(1024, kv_blocks * 16),
        )
        transport = open_transport(["shm"], host="127.0.0.1", run_dir=self.tmp_path, clock=SystemClock())
        return open_engine(config, transport, SystemClock())
