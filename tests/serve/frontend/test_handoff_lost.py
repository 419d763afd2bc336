"""A cache that does not come: the client notices nothing, metrics and explain tell why."""

from __future__ import annotations

from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Finished, FinishReason, HandoffLost, Item, Tokens
from tokenmill.testing.tiny_tokenizer import EOS_ID

from .conftest import REPLY

WHOLE = [*REPLY.encode(), EOS_ID]


def computed_here(_request: GenerateRequest) -> list[Item]:
    """A decode worker that goes on after the prefill worker's token without its cache."""
    rest = [Tokens(index, [WHOLE[index]]) for index in range(1, len(WHOLE) - 1)]
    end = Finished(len(WHOLE) - 1, [EOS_ID], FinishReason.STOP, EOS_ID)
    return [HandoffLost("mismatch", "their versions differ"), *rest, end]


async def test_the_reason_is_told(plant):
    await plant.worker("p1", role=Role.PREFILL)
    await plant.worker("d1", role=Role.DECODE, items=computed_here)
    answer = await plant.chat()
    assert answer.json()["choices"][0]["message"]["content"] == REPLY
    told = (await plant.ask("GET", f"/v1/explain/{answer.json()['id']}")).json()
    (attempt,) = told["choices"][0]["attempts"]
    assert attempt["handoff_failed"] == {"reason": "mismatch", "error": "their versions differ"}
    assert "handoff_failed" in attempt["timeline_ms"]
    metrics = (await plant.ask("GET", "/metrics")).body.decode()
    assert 'tokenmill_handoffs_lost_total{reason="mismatch"} 1.0' in metrics


async def test_a_handoff_that_works_tells_nothing(disaggregated):
    answer = await disaggregated.chat()
    told = (await disaggregated.ask("GET", f"/v1/explain/{answer.json()['id']}")).json()
    (attempt,) = told["choices"][0]["attempts"]
    assert attempt["handoff_failed"] is None
