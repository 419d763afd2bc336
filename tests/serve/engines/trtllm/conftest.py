"""A checkpoint folder's facts, and engines that are attached to a double in this process."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from tests.serve.engines.attached import Attached

from tokenmill.clock import SystemClock
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import EngineInfo, Sink
from tokenmill.serve.engines.trtllm.engine import TrtllmEngine
from tokenmill.serve.engines.trtllm.plan import TrtllmOptions
from tokenmill.testing.trtllm_double.options import CacheOptions, EngineOptions, Quirks, TransceiverOptions
from tokenmill.testing.trtllm_double.server import TrtllmDouble

MAX_MODEL_LEN = 8192


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that says what ``trtllm-serve`` does not."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    config = {"vocab_size": 260, "max_position_embeddings": MAX_MODEL_LEN, "eos_token_id": 256}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def engine_options(role: Role, *, kv_blocks: int = 256, **cache: object) -> EngineOptions:
    """What a launched server would have been told."""
    return EngineOptions(
        max_seq_len=MAX_MODEL_LEN,
        enable_iter_perf_stats=True,
        disable_overlap_scheduler=role is Role.PREFILL,
        kv_cache_config=CacheOptions(
            tokens_per_block=16,
            max_tokens=16 * kv_blocks,
            event_buffer_max_size=1000,
            **cache,  # type: ignore[arg-type]
        ),
        cache_transceiver_config=None if role is Role.BOTH else TransceiverOptions(backend="DEFAULT"),
    )


class DoubledEngine(Attached[TrtllmEngine]):
    """An engine and the double that it is attached to; both start and stop together."""

    def __init__(
        self,
        checkpoint: Path,
        role: Role = Role.BOTH,
        *,
        quirks: Quirks | None = None,
        options: EngineOptions | None = None,
        kv_blocks: int = 256,
        **own: object,
    ) -> None:
        self.clock = SystemClock()
        self.double = TrtllmDouble(
            self.clock, str(checkpoint), options or engine_options(role, kv_blocks=kv_blocks), quirks
        )
        self._options = TrtllmOptions(
            model="",
            model_name="tiny",
            role=role,
            checkpoint=checkpoint,
            **own,  # type: ignore[arg-type]
        )
        self.violations: list[str] = []
        """What the double is to have complained about."""

    async def start(self, sink: Sink) -> EngineInfo:
        await self.double.start()
        options = msgspec.structs.replace(self._options, attach=self.double.url)
        self.engine = TrtllmEngine(options, self.clock)
        return await self.engine.start(sink)

    async def stop(self) -> None:
        await self.engine.stop()
        await self.double.stop()
        assert self.double.completions.record.violations == self.violations
