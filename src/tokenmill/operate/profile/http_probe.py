"""Measures whatever answers OpenAI's completions at an address: our front door, or an engine's own server.

Seen from outside, so that times hold what lies between: connections, tokens' way out, other users' load.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError, WorkerFailed
from tokenmill.operate.profile.points import Point
from tokenmill.operate.profile.probe import ProbeFacts, Prompts
from tokenmill.operate.profile.runs import Arrival, Run
from tokenmill.serve.engines.remote.http_client import EventStream, HttpCall, HttpClient

FIRST_TOKEN_ID, LAST_TOKEN_ID = 100, 1000
"""Token ids that any vocabulary has as ordinary words; an endpoint does not tell its vocabulary."""

_ASK_TIMEOUT_S = 10.0


class HttpProbe:
    """See ``Probe``. ``model``: the name to ask for; "": the first that is listed. ``timeout_s``: the longest
    that one point may take."""

    def __init__(
        self, url: str, clock: Clock, *, model: str = "", key: str = "", timeout_s: float, seed: int = 0
    ) -> None:
        self._client = HttpClient(url.rstrip("/").removesuffix("/v1"), api_key=key)
        self._clock = clock
        self._model = model
        self._timeout_s = timeout_s
        self._prompts = Prompts(FIRST_TOKEN_ID, LAST_TOKEN_ID, seed)

    async def start(self) -> ProbeFacts:
        """See ``Probe``."""
        reply = await self._client.request("GET", "/v1/models", timeout_s=_ASK_TIMEOUT_S)
        if reply.status != 200:
            raise WorkerFailed(f"{self._client.base_url}/v1/models answered with status {reply.status}")
        listed = _list_of(reply.body)
        found = next((each for each in listed if not self._model or each.get("id") == self._model), None)
        if found is None:
            names = ", ".join(str(each.get("id")) for each in listed) or "none"
            raise WorkerFailed(f"model {self._model!r} is not served there; it lists {names}")
        self._model = str(found.get("id"))
        longest = found.get("max_model_len")
        await self.run(Point(1, 16, 4))
        return ProbeFacts(
            model=self._model,
            engine=str(found.get("owned_by") or "http"),
            method="arrivals",
            max_model_len=longest if isinstance(longest, int) else 0,
        )

    async def run(self, point: Point) -> Run:
        """See ``Probe``."""
        bodies = [self._body(point) for _ in range(point.prompts)]
        started_at = self._clock.now()
        answers = [_Answer(self._clock) for _ in bodies]
        calls: list[HttpCall] = []
        try:
            async with asyncio.timeout(self._timeout_s):
                for body, answer in zip(bodies, answers, strict=True):
                    calls.append(self._client.send("POST", "/v1/completions", answer, body=body))
                for answer in answers:
                    await answer.done
        except TimeoutError:
            message = f"a batch of {point} took longer than {self._timeout_s:.0f} s; lower the sweep's limits"
            raise TokenmillError(message) from None
        finally:
            for call in calls:
                call.cancel()
            for answer in answers:
                answer.done.cancel()
        return Run(point, started_at, [answer.arrivals for answer in answers], [])

    async def close(self) -> None:
        """See ``Probe``."""
        await self._client.close()

    def _body(self, point: Point) -> bytes:
        return msgspec.json.encode(
            {
                "model": self._model,
                "prompt": self._prompts.prompt(point.prompt_tokens),
                "max_tokens": point.output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "return_token_ids": True,
            }
        )


class _Answer:
    """One streamed completion: when its tokens came."""

    def __init__(self, clock: Clock) -> None:
        self.arrivals: list[Arrival] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clock = clock
        self._events = EventStream()
        self._status = 0
        self._refusal = b""

    def began(self, status: int) -> None:
        self._status = status

    def data(self, piece: bytes) -> None:
        now = self._clock.now()
        if self._status != 200:
            self._refusal = (self._refusal + piece)[:500]
            return
        tokens = sum(_tokens_in(event) for event in self._events.feed(piece))
        if tokens:
            self.arrivals.append(Arrival(now, tokens))

    def ended(self, error: TokenmillError | None) -> None:
        if self.done.done():
            return
        if error is not None:
            self.done.set_exception(error)
        elif self._status != 200:
            text = self._refusal.decode(errors="replace")
            self.done.set_exception(WorkerFailed(f"a completion was refused with {self._status}: {text}"))
        else:
            self.done.set_result(None)


def _tokens_in(event: bytes) -> int:
    """Tokens of one event: as it lists them, else one where it has text."""
    if event == b"[DONE]":
        return 0
    try:
        body: Any = msgspec.json.decode(event)
        choices = body.get("choices") or []
        return sum(
            len(choice["token_ids"]) if choice.get("token_ids") else bool(choice.get("text"))
            for choice in choices
        )
    except (msgspec.DecodeError, AttributeError, TypeError) as error:
        raise WorkerFailed(f"the stream is not one of completions: {error}") from None


def _list_of(body: bytes) -> list[dict[str, Any]]:
    try:
        data = msgspec.json.decode(body, type=dict[str, Any]).get("data")
    except msgspec.DecodeError as error:
        raise WorkerFailed(f"/v1/models is not a list of models: {error}") from None
    return [each for each in data if isinstance(each, dict)] if isinstance(data, list) else []
