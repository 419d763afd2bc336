"""SGLang behind the ``Engine`` seam. Exists as the shell around the plain objects of this folder."""

from __future__ import annotations

import asyncio
from functools import partial

from tokenmill.clock import Clock
from tokenmill.errors import BadRequest
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed
from tokenmill.serve.engines.base import EngineInfo
from tokenmill.serve.engines.kv_events.rank_events import EventSource, RankEvents
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.ports import ReservedPorts
from tokenmill.serve.engines.remote.questions import metrics_text
from tokenmill.serve.engines.remote.ranks import RankChoice
from tokenmill.serve.engines.remote.readiness import HealthCheck
from tokenmill.serve.engines.remote.served_engine import PATIENCE_S, ServedEngine
from tokenmill.serve.engines.sglang.constraints import CONSTRAINTS, grammar_params
from tokenmill.serve.engines.sglang.launch import LaunchPlan, Ports, SglangOptions, plan_launch
from tokenmill.serve.engines.sglang.metrics import read_metrics
from tokenmill.serve.engines.sglang.server import ServerFacts, ask
from tokenmill.serve.engines.sglang.submission import Submission
from tokenmill.serve.engines.sglang.wire import TRANSPORT

HEALTH_INTERVAL_S = 10.0
"""Between two looks whether the server makes tokens: one token where it does nothing, else none."""

HEALTH_PATIENCE_S = 60.0
"""A server that has made no token for so long, though it was asked to, is taken for broken."""


class SglangEngine(ServedEngine):
    """``Engine`` for SGLang."""

    name = "sglang"
    health = HealthCheck("/health_generate", 30.0)  # it makes a token, for which it gives itself 20 seconds

    def __init__(self, options: SglangOptions, clock: Clock) -> None:
        super().__init__(options, clock)
        self._options = options
        self._sources: tuple[EventSource, ...] | None = None
        self._facts: ServerFacts | None = None

    # ServedEngine -------------------------------------------------------------------------------------

    def _plan(self) -> LaunchPlan:
        ports = ReservedPorts(4, neighbours=max(1, self._options.parallel.dp))
        self._taken.callback(ports.release)
        plan = plan_launch(self._options, Ports(*ports.ports))
        self._sources = plan.sources
        return plan

    async def _learn(self, client: HttpClient) -> EngineInfo:
        options = self._options
        self._facts = facts = await ask(client, options.model_name, options.role, self._sources)
        events = RankEvents(facts.ranks, self._output.tell)
        self._taken.push_async_callback(events.close)
        # A decode server keeps no prefixes, and knows best which of its ranks has room.
        chooses = facts.ranks > 1 and options.role is not Role.DECODE
        self._choice = RankChoice(events.caches, facts.block_tokens) if chooses else None
        events.read(facts.sources)
        self._keep(self._watch_health(client))
        if facts.has_metrics:
            self._keep(self._follow_load(partial(_read_load, client)))
        return self._info_of(facts)

    def _refusal(self, request: GenerateRequest) -> Failed | None:
        """A token id outside of the vocabulary would break the server's step."""
        assert self._facts is not None
        tokens = request.prompt
        if not tokens:
            return Failed(400, "empty_prompt", "the prompt has no tokens")
        limit = self._facts.vocab_size or 2**31
        if min(tokens) < 0 or max(tokens) >= limit:
            return Failed(400, "bad_token", f"the prompt has a token id that is not in 0..{limit - 1}")
        try:
            grammar_params(request.sampling.constraints)
        except BadRequest as error:
            return Failed(400, "bad_constraint", error.message)
        return None

    def _submission(self, request: GenerateRequest, client: HttpClient) -> Submission:
        assert self._facts is not None
        return Submission(
            request,
            client,
            self._facts,
            self,
            bootstrap_host=client.host if self._options.attach else self._options.transfer_host,
            rank=self._choice.choose(request) if self._choice is not None else None,
        )

    # Inside -------------------------------------------------------------------------------------------

    async def _watch_health(self, client: HttpClient) -> None:
        """Tell when the server makes no tokens any more. Cancelled: nothing changes."""
        heard_at = self._clock.now()
        while self._clock.now() - heard_at <= HEALTH_PATIENCE_S:
            await asyncio.sleep(HEALTH_INTERVAL_S)
            if await self.health.passes(client):
                heard_at = self._clock.now()
        self._break(f"{client.base_url} has not made a token for {HEALTH_PATIENCE_S:g} s (/health_generate)")

    def _info_of(self, facts: ServerFacts) -> EngineInfo:
        options = self._options
        limit = options.max_model_len or facts.max_model_len
        return EngineInfo(
            engine=f"sglang {facts.version}".strip(),
            model=options.model_name or facts.model,
            max_model_len=min(limit, facts.max_model_len),
            block_tokens=facts.block_tokens,
            kv_blocks=facts.kv_blocks,
            max_sequences=options.max_sequences * facts.ranks,
            vocab_size=facts.vocab_size,
            eos_token_ids=list(facts.eos_token_ids),
            transports=[] if options.role is Role.BOTH else [TRANSPORT],
            constraints=list(CONSTRAINTS),
            early_handoff=options.role is Role.PREFILL,
            fingerprint=f"sglang {facts.model} {options.dtype} {facts.kv_dtype}",
            alone=options.role is Role.BOTH,
        )


async def _read_load(client: HttpClient) -> EngineGauges:
    return read_metrics(await metrics_text(client, PATIENCE_S))
