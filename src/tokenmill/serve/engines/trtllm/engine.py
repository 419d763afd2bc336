"""TensorRT-LLM behind the ``Engine`` seam: a real server, launched or attached to, driven by token ids over
HTTP.

Exists as the shell around the plain objects of this folder. It must not know frontends, routing or the desk.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import msgspec
import structlog

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, HandoffLost, Item, Tokens
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.serve.engines.base import EngineInfo, Sink
from tokenmill.serve.engines.remote.books import LoadBooks
from tokenmill.serve.engines.remote.child import Child, free_ports
from tokenmill.serve.engines.remote.http_client import Headers, HttpClient
from tokenmill.serve.engines.remote.readiness import is_healthy, wait_until_healthy
from tokenmill.serve.engines.remote.turns import TurnOutput
from tokenmill.serve.engines.trtllm.checkpoint import read_checkpoint
from tokenmill.serve.engines.trtllm.kv_feed import EventFeed
from tokenmill.serve.engines.trtllm.plan import TrtllmOptions, plan_launch
from tokenmill.serve.engines.trtllm.server import (
    LoadReader,
    ServerFacts,
    ask_dialect,
    facts_of,
    try_one_token,
    warn_of_role,
)
from tokenmill.serve.engines.trtllm.submission import Submission
from tokenmill.serve.engines.trtllm.wire import TRANSPORT

_log = structlog.get_logger(__name__)

LOAD_INTERVAL_S = 0.2
"""Between two readings of the server's load."""

LOAD_PATIENCE_S = 30.0
"""A server that has not answered for so long is taken for broken."""

_STOPPED = Failed(503, "engine_stopped", "the engine is stopping", retryable=True)


class TrtllmEngine:
    """``Engine`` for TensorRT-LLM. Open requests are bounded by ``max_waiting`` plus ``max_sequences``."""

    def __init__(self, options: TrtllmOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._books = LoadBooks()
        self._output = TurnOutput(self.metrics)
        self._open: dict[RequestId, Submission] = {}
        self._facts: ServerFacts | None = None
        self._client: HttpClient | None = None
        self._child: Child | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._failed: asyncio.Future[str] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # Engine -------------------------------------------------------------------------------------------

    async def start(self, sink: Sink) -> EngineInfo:
        """Launch or find the server and wait until it serves. Raises ConfigError. Cancelled: stopped."""
        self._output.sink = sink
        self._failed = asyncio.get_running_loop().create_future()
        try:
            self._facts = facts = await self._find()
        except BaseException:
            await self.stop()
            raise
        return self._info(facts)

    def submit(self, request: GenerateRequest) -> None:
        """Send a request to the server."""
        assert self._client is not None
        assert self._facts is not None
        request_id = request.request_id
        options = self._options
        refusal = self._refusal(request, self._facts)
        if len(self._open) >= options.max_sequences + options.max_waiting:
            refusal = Failed(429, "queue_full", "too many requests wait for this engine", retryable=True)
        if refusal is not None:
            self._output.say(request_id, refusal)
            return
        submission = Submission(request, self._client, self._facts.dialect, self)
        self._open[request_id] = submission
        self._books.opened(request)
        submission.start()

    def cancel(self, request_id: RequestId) -> None:
        """Stop a request; unknown ids are ignored."""
        submission = self._open.get(request_id)
        if submission is not None:
            submission.cancel()

    def metrics(self) -> StepMetrics:
        """The load as last known."""
        return self._books.metrics(self._facts.kv_blocks if self._facts is not None else 0)

    async def failure(self) -> str:
        """Wait until the server is gone. Cancelled: nothing changes."""
        assert self._failed is not None
        return await asyncio.shield(self._failed)

    async def stop(self) -> None:
        """End requests, and the server if it is ours. Cancelled: call it again."""
        for submission in tuple(self._open.values()):
            submission.fail(_STOPPED)
        self._output.flush()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._client is not None:
            await self._client.close()
        if self._child is not None:
            await self._child.stop()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
        if self._failed is not None and not self._failed.done():
            self._failed.cancel()

    # Books of submissions -----------------------------------------------------------------------------

    def said(self, request_id: RequestId, item: Item) -> None:
        """An item of a submission."""
        if isinstance(item, Tokens | Finished):
            self._books.made(len(item.tokens))
        if isinstance(item, Finished | Failed):
            self._open.pop(request_id, None)
            self._books.closed(request_id)
        self._output.say(request_id, item)

    def progressed(self, request_id: RequestId) -> None:
        """A prompt is computed."""
        self._books.progressed(request_id)

    def handed_in(self) -> None:
        """A cache made elsewhere was taken over."""
        self._books.handoffs_in += 1

    def handed_out(self) -> None:
        """A cache was offered."""
        self._books.handoffs_out += 1

    def handoff_failed(self, request_id: RequestId, reason: str, why: str) -> None:
        """A cache made elsewhere did not come."""
        self._books.handoffs_failed[reason] += 1
        _log.warning(
            "handoff failed; the prompt is computed here", request=request_id, reason=reason, why=why
        )
        self._output.say(request_id, HandoffLost(reason, why))

    # Inside -------------------------------------------------------------------------------------------

    async def _find(self) -> ServerFacts:
        """Bring the server up or reach it, learn what it is and begin to watch it."""
        options = self._options
        if not options.attach:
            await self._launch()
        client = self._client or HttpClient(options.attach, headers=_credentials(options.api_key))
        self._client = client
        await wait_until_healthy(client, self._child, self._clock, options.start_timeout_s)
        checkpoint = read_checkpoint(options.checkpoint)
        dialect, version = await ask_dialect(client, checkpoint)
        warn_of_role(dialect, options.role)
        feed = EventFeed(client, self._output.tell, block_tokens=options.block_tokens)
        told = options.prefix_cache and await feed.first()
        await try_one_token(client, dialect)
        load = LoadReader(client)
        gauges = await load.begin()
        if told:
            self._tasks.append(asyncio.create_task(feed.run(), name="KV events of trtllm"))
        self._tasks.append(asyncio.create_task(self._watch(client, load), name="watch trtllm"))
        return facts_of(
            dialect,
            version,
            checkpoint,
            blocks=feed.blocks or (gauges.kv_blocks if gauges else 0),
            block_tokens=(gauges.block_tokens if gauges else 0) or feed.block_tokens,
            limit=options.max_model_len,
        )

    async def _launch(self) -> None:
        options = self._options
        if not options.run_dir:
            self._folder = tempfile.TemporaryDirectory(prefix="tokenmill-trtllm-")
            options = msgspec.structs.replace(options, run_dir=self._folder.name)
        plan = plan_launch(options, free_ports(1)[0])
        _write(plan.options_file, plan.options)
        self._child = Child(f"trtllm {options.role.value}", plan.command, plan.environment)
        self._client = HttpClient(plan.url, headers=_credentials(options.api_key))
        await self._child.start()

    def _refusal(self, request: GenerateRequest, facts: ServerFacts) -> Failed | None:
        """What the server would refuse, or take without being able to."""
        if not request.prompt:
            return Failed(400, "empty_prompt", "the prompt has no tokens")
        least, most = min(request.prompt), max(request.prompt)
        if least < 0 or (facts.vocab_size and most >= facts.vocab_size):
            wrong = least if least < 0 else most
            return Failed(400, "bad_token", f"the prompt holds {wrong}, which is no token of this model")
        if len(request.prompt) + len(request.output) >= facts.max_model_len:
            why = f"the prompt does not fit into the context of {facts.max_model_len} tokens"
            return Failed(400, "too_long", why)
        if request.sampling.prompt_logprobs is not None and request.role is not Role.DECODE:
            why = "TensorRT-LLM's server does not tell log probabilities of a prompt; remove prompt_logprobs"
            return Failed(400, "unsupported", why)
        return None

    async def _watch(self, client: HttpClient, load: LoadReader) -> None:
        """Read the load, and tell when the server is gone. Cancelled: nothing changes."""
        died = asyncio.ensure_future(self._child.died()) if self._child is not None else None
        heard_at = self._clock.now()
        try:
            while died is None or not died.done():
                try:
                    gauges = await load.read()
                    heard_at = self._clock.now()
                    if gauges is not None:
                        self._books.read(gauges)
                        self._output.tell_load()
                except TokenmillError as error:
                    _log.debug("the load cannot be read", error=error.message)
                    if await is_healthy(client):  # some versions hold the load back while they are busy
                        heard_at = self._clock.now()
                if died is None and self._clock.now() - heard_at > LOAD_PATIENCE_S:
                    self._break(f"{client.base_url} has not answered for {LOAD_PATIENCE_S:g} s")
                    return
                await (asyncio.sleep(LOAD_INTERVAL_S) if died is None else _wait(died))
            self._break(died.result())
        finally:
            if died is not None:
                died.cancel()
                await asyncio.gather(died, return_exceptions=True)

    def _break(self, why: str) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(why)
        for submission in tuple(self._open.values()):
            submission.fail(Failed(502, "engine_lost", why, retryable=True))

    def _info(self, facts: ServerFacts) -> EngineInfo:
        options = self._options
        return EngineInfo(
            engine=f"trtllm {facts.version}".strip(),
            model=options.model_name or facts.dialect.model,
            max_model_len=facts.max_model_len,
            block_tokens=facts.block_tokens,
            kv_blocks=facts.kv_blocks,
            max_sequences=options.max_sequences,
            vocab_size=facts.vocab_size,
            eos_token_ids=sorted(facts.dialect.end_ids),
            transports=[TRANSPORT],
            early_handoff=False,
            fingerprint=f"trtllm {facts.version} {facts.dialect.model} {options.dtype}",
        )


def _write(path: str, text: str) -> None:
    """A few hundred bytes on a local disk, before anything is served."""
    Path(path).write_text(text, "utf-8")


async def _wait(died: asyncio.Future[str]) -> None:
    await asyncio.wait((died,), timeout=LOAD_INTERVAL_S)


def _credentials(api_key: str) -> Headers:
    return (("authorization", f"Bearer {api_key}"),) if api_key else ()
