"""TensorRT-LLM behind the ``Engine`` seam. Exists as the shell around the plain objects of this folder."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import msgspec

from tokenmill.clock import Clock
from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed
from tokenmill.serve.engines.base import EngineInfo
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.ports import ReservedPorts
from tokenmill.serve.engines.remote.served_engine import ServedEngine
from tokenmill.serve.engines.trtllm.checkpoint import read_checkpoint
from tokenmill.serve.engines.trtllm.kv_feed import EventFeed
from tokenmill.serve.engines.trtllm.plan import LaunchPlan, TrtllmOptions, plan_launch
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


class TrtllmEngine(ServedEngine):
    """``Engine`` for TensorRT-LLM."""

    name = "trtllm"

    def __init__(self, options: TrtllmOptions, clock: Clock) -> None:
        super().__init__(options, clock)
        self._options = options
        self._facts: ServerFacts | None = None

    # ServedEngine -------------------------------------------------------------------------------------

    def _plan(self) -> LaunchPlan:
        options = self._options
        if not options.run_dir:
            folder = tempfile.TemporaryDirectory(prefix="tokenmill-trtllm-")
            self._taken.callback(folder.cleanup)
            options = msgspec.structs.replace(options, run_dir=folder.name)
        ports = ReservedPorts(1)
        self._taken.callback(ports.release)
        plan = plan_launch(options, ports.ports[0])
        # A few hundred bytes on a local disk, before anything is served.
        Path(plan.options_file).write_text(plan.options, "utf-8")
        return plan

    async def _learn(self, client: HttpClient) -> EngineInfo:
        options = self._options
        checkpoint = read_checkpoint(options.checkpoint)
        dialect, version = await ask_dialect(client, checkpoint)
        warn_of_role(dialect, options.role)
        feed = EventFeed(client, self._output.tell, block_tokens=options.block_tokens)
        told = options.prefix_cache and await feed.first()
        await try_one_token(client, dialect)
        load = LoadReader(client)
        gauges = await load.begin()
        if told:
            self._keep(feed.run())
        self._keep(self._follow_load(partial(self._read_load, client, load)))
        self._facts = facts_of(
            dialect,
            version,
            checkpoint,
            blocks=feed.blocks or (gauges.kv_blocks if gauges else 0),
            block_tokens=(gauges.block_tokens if gauges else 0) or feed.block_tokens,
            limit=options.max_model_len,
        )
        return self._info_of(self._facts)

    def _refusal(self, request: GenerateRequest) -> Failed | None:
        """What the server would refuse, or take without being able to."""
        assert self._facts is not None
        facts = self._facts
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

    def _submission(self, request: GenerateRequest, client: HttpClient) -> Submission:
        assert self._facts is not None
        return Submission(request, client, self._facts.dialect, self)

    # Inside -------------------------------------------------------------------------------------------

    async def _read_load(self, client: HttpClient, load: LoadReader) -> EngineGauges | None:
        """Some versions hold the load back while they are busy: then it is enough that they are there."""
        try:
            return await load.read()
        except TokenmillError:
            if await self.health.passes(client):
                return None
            raise

    def _info_of(self, facts: ServerFacts) -> EngineInfo:
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
