"""What tests of submissions to servers share: who is told what comes of a request, and the request."""

from __future__ import annotations

import asyncio

from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, Item


class Books:
    """Writes down what it is told. ``log``: the server's clue for any loss."""

    def __init__(self, log: str = "") -> None:
        self.items: list[Item] = []
        self.notes: list[str] = []
        self.over = asyncio.Event()
        self._log = log

    def said(self, _request_id: RequestId, item: Item) -> None:
        assert not self.over.is_set(), f"{item} after the end"
        self.items.append(item)
        if isinstance(item, Finished | Failed):
            self.over.set()

    def progressed(self, _request_id: RequestId) -> None:
        self.notes.append("progressed")

    def handed_in(self) -> None:
        self.notes.append("in")

    def handed_out(self) -> None:
        self.notes.append("out")

    def handoff_failed(self, _request_id: RequestId, reason: str, why: str) -> None:
        self.notes.append(f"failed: {reason}: {why}")

    def clue(self, _request_id: RequestId) -> str:
        return self._log

    async def end(self) -> Item:
        async with asyncio.timeout(10):
            await self.over.wait()
        return self.items[-1]


def request(role: Role = Role.BOTH, **fields: object) -> GenerateRequest:
    """Four greedy tokens after three; ``fields``: of the sampling, or the request's own."""
    sampling = {"max_tokens": 4, "temperature": 0.0, "seed": 7}
    own = {name: fields.pop(name) for name in ("output", "handoff", "cache_salt") if name in fields}
    return GenerateRequest(
        request_id=RequestId("r"),
        prompt=[5, 6, 7],
        sampling=Sampling(**{**sampling, **fields}),  # type: ignore[arg-type]
        role=role,
        **own,  # type: ignore[arg-type]
    )
