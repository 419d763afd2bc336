"""The suite that every engine must pass, over the SGLang double."""

from __future__ import annotations

from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed, HandoffLost
from tokenmill.serve.engines.base import Engine
from tokenmill.testing.engine_client import EngineClient, finished
from tokenmill.testing.engine_conformance import EngineConformance

from .doubles import DoubledEngine


class TestSglangConformance(EngineConformance):
    """A decode server cannot compute a prompt, so that a lost handoff is another pair's business."""

    def make_engine(
        self,
        *,
        kv_blocks: int = 256,
        prefill_budget: int = 64,
        role: Role = Role.BOTH,
    ) -> Engine:
        return DoubledEngine(role, max_total_tokens=kv_blocks * 16, bootstrap_timeout_s=3.0)

    async def test_a_lost_handoff_is_computed_here(self) -> None:
        async with EngineClient(self.make_engine(role=Role.DECODE)) as decode:
            prompt = self.prompt(45)
            nowhere = Handoff(decode.info.transports[0], b"nowhere", len(prompt))
            _, answer = decode.submit(prompt, role=Role.DECODE, handoff=nowhere)
            await finished(answer)
            lost, end = answer.items
            assert isinstance(lost, HandoffLost)
            assert isinstance(end, Failed)
            assert (end.code, end.retryable) == ("handoff_failed", True)
            assert decode.engine.metrics().handoffs_failed_total == 1
