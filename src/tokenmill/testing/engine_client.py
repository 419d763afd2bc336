"""Drives an ``Engine`` in tests: submits requests and gathers what the sink says about each."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Self

from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, FinishReason, Item, Offered, Tokens
from tokenmill.serve.engines.base import Engine, EngineInfo, EngineOutput


class Answer:
    """Everything an engine said about one request.

    Raises AssertionError as soon as an item breaks the protocol: a gap or an overlap in the output
    positions, or anything after the end.
    """

    def __init__(self, first_index: int) -> None:
        self.items: list[Item] = []
        self.tokens: list[int] = []
        self.first_index: int | None = None
        self.end: Finished | Failed | None = None
        self.offered: asyncio.Future[Handoff] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[Finished | Failed] = asyncio.get_running_loop().create_future()
        self.progress = asyncio.Event()
        self._least_index = first_index

    def take(self, item: Item) -> None:
        """Take the next item."""
        assert self.end is None, f"{item} came after the end {self.end}"
        self.items.append(item)
        if isinstance(item, Offered):
            assert not self.offered.done(), "a second offer"
            self.offered.set_result(item.handoff)
        if isinstance(item, Tokens | Finished) and item.tokens:
            if self.first_index is None:
                self.first_index = item.index
            assert item.index == self.first_index + len(self.tokens), f"lost or doubled tokens at {item}"
            assert item.index >= self._least_index, f"{item} repeats delivered tokens"
            self.tokens += item.tokens
            self.progress.set()
        if isinstance(item, Finished | Failed):
            self.end = item
            self.ended.set_result(item)
            self.progress.set()
            if not self.offered.done():
                self.offered.cancel()

    @property
    def reason(self) -> FinishReason:
        """Why it ended; AssertionError when it has not ended well."""
        assert isinstance(self.end, Finished), f"ended with {self.end}"
        return self.end.reason


class EngineClient:
    """An engine under test and its answers. ``async with`` starts and stops it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.info: EngineInfo
        self.outputs: list[EngineOutput] = []
        self.answers: dict[RequestId, Answer] = {}
        self._numbers: defaultdict[str, int] = defaultdict(int)

    async def __aenter__(self) -> Self:
        self.info = await self.engine.start(self._sink)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()

    def _sink(self, output: EngineOutput) -> None:
        self.outputs.append(output)
        for request_id, item in output.items:
            self.answers[request_id].take(item)

    def submit(
        self,
        prompt: list[int],
        *,
        role: Role = Role.BOTH,
        handoff: Handoff | None = None,
        output: list[int] | None = None,
        request_id: str | None = None,
        **sampling: object,
    ) -> tuple[RequestId, Answer]:
        """Submit a request; greedy and 16 tokens unless ``sampling`` says otherwise."""
        if request_id is None:
            self._numbers["request"] += 1
            request_id = f"request-{self._numbers['request']}"
        fields: dict[str, object] = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True, **sampling}
        request = GenerateRequest(
            request_id=RequestId(request_id),
            prompt=prompt,
            sampling=Sampling(**fields),  # type: ignore[arg-type]
            output=output or [],
            role=role,
            handoff=handoff,
        )
        answer = self.answers[request.request_id] = Answer(len(request.output))
        self.engine.submit(request)
        return request.request_id, answer

    async def generate(self, prompt: list[int], **options: object) -> list[int]:
        """Submit, wait for a good end, and return the tokens."""
        _, answer = self.submit(prompt, **options)  # type: ignore[arg-type]
        await finished(answer)
        assert isinstance(answer.end, Finished), answer.end
        return answer.tokens


async def finished(*answers: Answer, timeout_s: float = 60.0) -> None:
    """Wait until all answers have ended."""
    async with asyncio.timeout(timeout_s):
        for answer in answers:
            await asyncio.shield(answer.ended)


async def hand_over(
    prefill: EngineClient,
    decode: EngineClient,
    prompt: list[int],
    *,
    handoff: Handoff | None = None,
    output: list[int] | None = None,
    **sampling: object,
) -> tuple[list[int], Answer, Answer]:
    """Prefill on one engine, decode on another, as a frontend does; ``handoff`` overrides the offered one.

    Returns the tokens as a client sees them, and both answers.
    """
    _, first = prefill.submit(prompt, role=Role.PREFILL, output=output, **sampling)  # type: ignore[arg-type]
    async with asyncio.timeout(60):
        offered = await asyncio.shield(first.offered)
    _, rest = decode.submit(
        prompt,
        role=Role.DECODE,
        handoff=handoff or offered,
        output=output,
        **sampling,  # type: ignore[arg-type]
    )
    await finished(first, rest)
    seen = list(first.tokens)
    if rest.tokens:
        assert rest.first_index is not None
        overlap = len(seen) + len(output or []) - rest.first_index
        assert overlap >= 0, "tokens lost between prefill and decode"
        seen += rest.tokens[overlap:]
    return seen, first, rest
