"""vLLM behind the ``Engine`` seam. Exists as the shell around the plain objects of this folder."""

from __future__ import annotations

from functools import partial

from tokenmill.clock import Clock
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.handoffs import VLLM_TRANSPORTS
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.engines.base import EngineInfo
from tokenmill.serve.engines.kv_events.rank_events import EventSource, RankEvents
from tokenmill.serve.engines.remote.gauges import EngineGauges
from tokenmill.serve.engines.remote.http_client import Headers, HttpClient
from tokenmill.serve.engines.remote.ports import ReservedPorts
from tokenmill.serve.engines.remote.questions import metrics_text
from tokenmill.serve.engines.remote.ranks import RankChoice
from tokenmill.serve.engines.remote.served_engine import PATIENCE_S, ServedEngine
from tokenmill.serve.engines.vllm.launch import kv_lease_s
from tokenmill.serve.engines.vllm.losses import LogClues
from tokenmill.serve.engines.vllm.metrics import read_metrics
from tokenmill.serve.engines.vllm.plan import LaunchPlan, Ports, VllmOptions, plan_launch, ranks_of
from tokenmill.serve.engines.vllm.server import ServerFacts, ask
from tokenmill.serve.engines.vllm.submission import Submission
from tokenmill.serve.engines.vllm.wire import CONSTRAINTS


class VllmEngine(ServedEngine):
    """``Engine`` for vLLM."""

    name = "vllm"

    def __init__(self, options: VllmOptions, clock: Clock) -> None:
        super().__init__(options, clock)
        self._options = options
        self._lease_s = (
            options.lease_s if options.kv_connector == "tokenmill" else kv_lease_s(options.engine_args)
        )
        self._clues = LogClues()
        self._on_log_line = self._clues.take
        self._sources: tuple[EventSource, ...] | None = None
        self._facts: ServerFacts | None = None

    def clue(self, request_id: RequestId) -> str:
        """What the launched server's log says about a failed transfer."""
        return self._clues.of(request_id)

    # ServedEngine -------------------------------------------------------------------------------------

    def _plan(self) -> LaunchPlan:
        ports = ReservedPorts(4, neighbours=ranks_of(self._options.parallel))
        self._taken.callback(ports.release)
        plan = plan_launch(self._options, Ports(*ports.ports))
        self._sources = plan.sources
        return plan

    async def _learn(self, client: HttpClient) -> EngineInfo:
        self._facts = facts = await ask(client, self._options.model_name, self._sources)
        events = RankEvents(facts.ranks, self._output.tell)
        self._taken.push_async_callback(events.close)
        self._choice = RankChoice(events.caches, facts.block_tokens)
        events.read(facts.sources)
        self._keep(self._follow_load(partial(_read_load, client)))
        return self._info_of(facts)

    def _submission(self, request: GenerateRequest, client: HttpClient) -> Submission:
        assert self._facts is not None
        return Submission(
            request,
            client,
            self._facts.model,
            self,
            self._rank_headers(request),
            clock=self._clock,
            lease_s=self._lease_s,
            transport=VLLM_TRANSPORTS[self._options.kv_connector],
            token_route=self._facts.token_route,
        )

    # Inside -------------------------------------------------------------------------------------------

    def _rank_headers(self, request: GenerateRequest) -> Headers:
        assert self._choice is not None
        rank = self._choice.choose(request)
        return (("x-data-parallel-rank", str(rank)),) if self._choice.ranks > 1 else ()

    def _info_of(self, facts: ServerFacts) -> EngineInfo:
        options = self._options
        limit = options.max_model_len or facts.max_model_len
        return EngineInfo(
            engine=f"vllm {facts.version}".strip(),
            model=options.model_name or facts.model,
            max_model_len=min(limit, facts.max_model_len),
            block_tokens=facts.block_tokens,
            kv_blocks=facts.kv_blocks,
            max_sequences=options.max_sequences * facts.ranks,
            vocab_size=0,
            eos_token_ids=[],
            transports=[VLLM_TRANSPORTS[options.kv_connector]],
            early_handoff=False,
            constraints=list(CONSTRAINTS),
            fingerprint=f"vllm {facts.version} {facts.root} {options.dtype}",
        )


async def _read_load(client: HttpClient) -> EngineGauges:
    return read_metrics(await metrics_text(client, PATIENCE_S))
