"""A server of OpenAI's API behind the ``Engine`` seam: requests as text, answers as text.

Exists as the shell around the plain objects of this folder: it admits, queues and watches. It must not know
frontends, routing or the desk, nor what the text says.
"""

from __future__ import annotations

import asyncio
from collections import deque

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError
from tokenmill.protocol.card import Speech
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Item
from tokenmill.protocol.metrics import Circuit, StepMetrics
from tokenmill.protocol.text import TextFinished, TextRequest
from tokenmill.serve.engines.base import EngineInfo, Sink
from tokenmill.serve.engines.openai.server import ServerFacts, ask, base_of
from tokenmill.serve.engines.openai.submission import CANCELLED, TextSubmission
from tokenmill.serve.engines.remote.breaker import CircuitBreaker, Outcome
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.keys import hidden
from tokenmill.serve.engines.remote.turns import TurnOutput
from tokenmill.spec.models import ALL_MODELS

_log = structlog.get_logger(__name__)

WATCH_S = 0.25
"""Between two looks at silent answers and at the breaker."""

BLOCK_TOKENS = 16
"""A router's grain for prompts that begin alike; the server's own is not known."""

_STOPPED = Failed(503, "engine_stopped", "the engine is stopping", retryable=True)
_NO_TEXT = Failed(400, "engine_speaks_text", "this worker takes text, and no token ids")


class OpenAiArguments(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The engine's ``engine_args``. ``idle_timeout_s``: without a byte of a streamed answer;
    ``answer_timeout_s``: until the end of a whole one. ``breaker_failures`` in a row open the circuit for
    ``breaker_open_s``, doubled up to ``breaker_longest_s``. ``start_timeout_s``: until the server answers at
    all.
    """

    idle_timeout_s: float = 120.0
    answer_timeout_s: float = 600.0
    breaker_failures: int = 5
    breaker_open_s: float = 1.0
    breaker_longest_s: float = 30.0
    start_timeout_s: float = 60.0


class OpenAiOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is told of its engine. ``model``: as the server calls it; ``model_name``: as clients
    do."""

    attach: str
    api_key: str = ""
    model: str = ""
    model_name: str = ""
    max_model_len: int = 0
    max_sequences: int = 64
    max_waiting: int = 1024
    arguments: OpenAiArguments = OpenAiArguments()


class OpenAiEngine:
    """``Engine`` for a server of text. At most ``max_sequences`` requests are sent to it at once, and
    ``max_waiting`` more wait here."""

    def __init__(self, options: OpenAiOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        arguments = options.arguments
        self._breaker = CircuitBreaker(
            failures=arguments.breaker_failures,
            open_s=arguments.breaker_open_s,
            longest_s=arguments.breaker_longest_s,
        )
        self._client = HttpClient(base_of(options.attach), api_key=options.api_key)
        self._output = TurnOutput(self.metrics)
        self._facts: ServerFacts | None = None
        self._running: dict[RequestId, TextSubmission] = {}
        self._tickets: dict[RequestId, int] = {}
        self._waiting: deque[tuple[RequestId, TextRequest]] = deque()
        self._watch: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[str] | None = None
        self._step = 0
        self._prompt_tokens = 0
        self._cached_tokens = 0
        self._output_tokens = 0

    # Engine -------------------------------------------------------------------------------------------

    async def start(self, sink: Sink) -> EngineInfo:
        """Ask the server what it has. Raises ConfigError, WorkerLost. Cancelled: stopped."""
        options = self._options
        self._output.sink = sink
        self._failed = asyncio.get_running_loop().create_future()
        try:
            self._facts = facts = await ask(
                self._client,
                options.model,
                options.model_name,
                self._clock,
                options.arguments.start_timeout_s,
            )
        except TokenmillError as error:
            await self.stop()
            raise type(error)(hidden(error.message, options.api_key), param=error.param) from None
        except BaseException:
            await self.stop()
            raise
        self._watch = asyncio.create_task(self._watch_server(), name="watch openai")
        _log.info("server found", server=self._client.base_url, model=facts.model, offers=len(facts.offers))
        return self._info(facts)

    def submit(self, request: GenerateRequest) -> None:
        """Send a request to the server, or let it wait."""
        request_id, text = request.request_id, request.text
        if text is None:
            self._output.say(request_id, _NO_TEXT)
        elif len(self._running) < self._options.max_sequences:
            self._begin(request_id, text)
        elif len(self._waiting) < self._options.max_waiting:
            self._waiting.append((request_id, text))
        else:
            full = Failed(429, "queue_full", "too many requests wait for this server", retryable=True)
            self._output.say(request_id, full)

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; unknown ids are ignored."""
        submission = self._running.get(request_id)
        if submission is not None:
            submission.cancel()
            return
        for entry in self._waiting:
            if entry[0] == request_id:
                self._waiting.remove(entry)
                self._output.say(request_id, CANCELLED)
                return

    def metrics(self) -> StepMetrics:
        """The load, as far as it is ours."""
        return StepMetrics(
            step=self._step,
            running=len(self._running),
            waiting=len(self._waiting),
            prefix_hit_tokens_total=self._cached_tokens,
            prefix_query_tokens_total=self._prompt_tokens,
            prefill_tokens_total=self._prompt_tokens - self._cached_tokens,
            decode_tokens_total=self._output_tokens,
            circuit=self._breaker.state,
        )

    async def failure(self) -> str:
        """Wait for good: a server that fails is left alone and tried again. Cancelled: nothing changes."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """End all requests and connections. Cancelled: call it again."""
        waiting, self._waiting = self._waiting, deque()
        for request_id, _ in waiting:
            self._output.say(request_id, _STOPPED)
        for submission in tuple(self._running.values()):
            submission.fail(_STOPPED, Outcome.NEITHER)
        self._output.flush()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._client.close()
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    # Books of submissions -----------------------------------------------------------------------------

    def said(self, request_id: RequestId, item: Item) -> None:
        """An item of a submission."""
        if isinstance(item, Failed):
            item = msgspec.structs.replace(item, message=hidden(item.message, self._options.api_key))
        self._output.say(request_id, item)
        if not isinstance(item, TextFinished | Failed):
            return
        self._running.pop(request_id, None)
        self._tickets.pop(request_id, None)
        if isinstance(item, TextFinished) and item.usage is not None:
            self._prompt_tokens += item.usage.prompt_tokens
            self._cached_tokens += item.usage.cached_tokens
            self._output_tokens += item.usage.output_tokens
        if self._waiting and len(self._running) < self._options.max_sequences:
            asyncio.get_running_loop().call_soon(self._begin_next)

    def judged(self, request_id: RequestId, outcome: Outcome) -> None:
        """What a request says of the server."""
        before = self._breaker.state
        self._breaker.tell(self._tickets[request_id], outcome, self._clock.now())
        if self._breaker.state is not before:
            self._tell_circuit()

    # Inside -------------------------------------------------------------------------------------------

    def _begin(self, request_id: RequestId, text: TextRequest) -> None:
        assert self._facts is not None
        model = text.model or self._facts.model
        if text.model and text.model not in self._facts.offers:
            missing = f"the server of this worker has no model {text.model!r}"
            self._output.say(request_id, Failed(404, "model_not_found", missing, retryable=True))
            return
        now = self._clock.now()
        ticket = self._breaker.admit(now)
        if ticket is None:
            self._output.say(request_id, self._shut(now))
            return
        submission = TextSubmission(request_id, text, model, self._client, self, now)
        self._running[request_id] = submission
        self._tickets[request_id] = ticket
        submission.start()

    def _begin_next(self) -> None:
        while self._waiting and len(self._running) < self._options.max_sequences:
            self._begin(*self._waiting.popleft())

    def _shut(self, now: float) -> Failed:
        left_s = self._breaker.left_s(now)
        again = f"is tried again in {left_s:.1f} s" if left_s else "is being tried again"
        return Failed(
            503, "circuit_open", f"{self._client.base_url} keeps failing and {again}", retryable=True
        )

    async def _watch_server(self) -> None:
        """End what has been silent for too long, and let the breaker see the time. Cancelled: nothing
        changes."""
        arguments = self._options.arguments
        while True:
            await asyncio.sleep(WATCH_S)
            now = self._clock.now()
            self._step += 1
            for submission in tuple(self._running.values()):
                limit_s = arguments.idle_timeout_s if submission.streamed else arguments.answer_timeout_s
                if submission.silent_since(now) > limit_s:
                    silent = Failed(
                        504, "upstream_silent", f"the server said nothing for {limit_s:g} s", True
                    )
                    submission.fail(silent, Outcome.BAD)
            before = self._breaker.state
            if self._breaker.look(now) is not before:
                self._tell_circuit()

    def _tell_circuit(self) -> None:
        state = self._breaker.state
        say = _log.info if state is not Circuit.OPEN else _log.warning
        say("circuit", server=self._client.base_url, state=state.name.lower().replace("_", "-"))
        self._output.tell_load()

    def _info(self, facts: ServerFacts) -> EngineInfo:
        options = self._options
        limits = [limit for limit in (options.max_model_len, facts.context_tokens) if limit]
        return EngineInfo(
            engine="openai",
            model=options.model_name or facts.model or ALL_MODELS,
            max_model_len=min(limits, default=0),
            block_tokens=BLOCK_TOKENS,
            kv_blocks=0,
            max_sequences=options.max_sequences,
            vocab_size=0,
            eos_token_ids=[],
            transports=[],
            early_handoff=False,
            fingerprint="",
            speaks=Speech.TEXT,
            offers=facts.offers,
        )
