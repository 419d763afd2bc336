"""A plant whose prefill and decode workers hand KV caches over, on a virtual clock.

Adds to ``plant`` what a handoff is made of: the offer's way over the frontend, a link that moves tokens in
the order they become ready, and the release. Roles, queues and blocks are those of the real step scheduler.
It must not know how a router decides.
"""

from __future__ import annotations

import msgspec

from tokenmill.decide.batching.types import (
    AdvanceKv,
    BatchingConfig,
    ExportReleased,
    Finish,
    Instruction,
    KvArrived,
    OfferKv,
    PullKv,
    RequestArrived,
    SealKv,
    SequenceRequest,
    WithdrawKv,
)
from tokenmill.decide.router.router import Router
from tokenmill.decide.router.types import RouteRequest
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.items import FinishReason
from tokenmill.simulate.plant import Plant, PlantConfig, _Post
from tokenmill.simulate.prompts import PromptMaker, unpack
from tokenmill.simulate.report import Journal
from tokenmill.simulate.timing import PlantTimes
from tokenmill.simulate.worker import PlantWorker


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """Workers alike; their role is in ``batching``."""

    workers: int
    batching: BatchingConfig
    times: PlantTimes


class DisaggregatedConfig(msgspec.Struct, frozen=True, kw_only=True):
    """``stages`` with a link into each worker that receives: ``transfer_fixed_ms`` for each handoff and
    ``transfer_token_ms`` for each token, one after another. ``early_handoff``: caches are offered when a
    prompt is begun, not when it is done."""

    stages: list[Stage]
    transfer_fixed_ms: float = 1.0
    transfer_token_ms: float = 0.013
    early_handoff: bool = True
    message_delay_s: float = 0.001
    report_interval_s: float = 0.05


class _Handoff(msgspec.Struct, kw_only=True, eq=False):
    """One cache on its way. ``ready``: tokens that the sender has; ``moved``: that the receiver has or that
    the link is committed to, of ``tokens``. ``moved_at``: when the link is done with them."""

    request: SequenceRequest
    giver: HandoffWorker
    taker: HandoffWorker
    offered: bool = False
    pulling: bool = False
    ready: int = 0
    moved: int = 0
    moved_at: float = 0.0
    moved_tokens: int = 0
    moving_s: float = 0.0
    first_token: int | None = None


class HandoffWorker(PlantWorker):
    """A worker that also says what is to happen with KV blocks. ``link_free_at``: of the link into it."""

    def __init__(
        self,
        worker_id: WorkerId,
        config: BatchingConfig,
        times: PlantTimes,
        prompts: PromptMaker,
        journal: Journal,
        *,
        early_handoff: bool,
    ) -> None:
        super().__init__(worker_id, config, times, prompts, journal)
        budget = min(config.prefill_budget or config.token_budget, config.token_budget)
        self.card = msgspec.structs.replace(
            self.card,
            transports=["plant"],
            fingerprint="plant",
            early_handoff=early_handoff,
            prefill_budget=budget,
        )
        self.moves: list[Instruction] = []
        self.link_free_at = 0.0

    def take_request(self, request: SequenceRequest, now: float) -> None:
        """A request of any role arrives."""
        self._take(self._scheduler.handle(RequestArrived(request), now), now)

    def kv_arrived(self, arrived: KvArrived, now: float) -> None:
        """A pull has ended."""
        self._take(self._scheduler.handle(arrived, now), now)

    def released(self, request_id: RequestId, now: float) -> None:
        """A receiver has taken the blocks."""
        self._take(self._scheduler.handle(ExportReleased(request_id), now), now)

    def validate_idle(self) -> None:
        """Check that nothing is left of any sequence; raises AssertionError. For tests."""
        self._scheduler.validate()
        assert not self._scheduler.has_work
        assert self.metrics().kv_blocks_used == 0, "a sequence has left blocks behind"

    def _take(self, instructions: list[Instruction], now: float) -> None:
        others: list[Instruction] = []
        for instruction in instructions:
            if isinstance(instruction, OfferKv | AdvanceKv | SealKv | PullKv | WithdrawKv):
                self.moves.append(instruction)
            elif isinstance(instruction, Finish) and instruction.reason is FinishReason.HANDOFF:
                self.ended.append(instruction.request_id)
            else:
                others.append(instruction)
        super()._take(others, now)


class DisaggregatedPlant(Plant):
    """One run over several stages: ``DisaggregatedPlant(...).run(trace)``. Deterministic as ``Plant`` is."""

    def __init__(
        self, config: DisaggregatedConfig, router: Router, *, journal: Journal | None = None
    ) -> None:
        first = config.stages[0]
        delays = PlantConfig(
            workers=0,
            batching=first.batching,
            message_delay_s=config.message_delay_s,
            report_interval_s=config.report_interval_s,
        )
        super().__init__(delays, router, first.times)
        self._setting = config
        self._journal = journal or Journal()
        self._handoffs: dict[RequestId, _Handoff] = {}
        self._workers: dict[WorkerId, HandoffWorker] = {}
        self.local = self.remote = 0
        """Requests whose prefill was done on the decode worker, and on a prefill worker."""

    @property
    def workers(self) -> list[HandoffWorker]:
        """All workers, stage by stage."""
        return list(self._workers.values())

    def _start_workers(self, prompts: PromptMaker) -> None:
        for stage in self._setting.stages:
            for number in range(stage.workers):
                worker_id = WorkerId(f"{stage.batching.role}-{number}")
                worker = HandoffWorker(
                    worker_id,
                    stage.batching,
                    stage.times,
                    prompts,
                    self._journal,
                    early_handoff=self._setting.early_handoff,
                )
                self._workers[worker_id] = worker
                self._posts[worker_id] = _Post(worker)
                self._router.worker_ready(worker.card)

    def _arrive(self, request_id: RequestId, packed: bytes, output_tokens: int) -> None:
        now = self._clock.now()
        route = RouteRequest(request_id=request_id, packed=packed, output_tokens=output_tokens)
        self._journal.arrived(request_id, route.tokens, now)
        decision = self._router.route(route, now)
        if decision is None:
            self._journal.refused(request_id)
            return
        prompt, decode_worker = unpack(packed), decision.decode_worker
        if decision.prefill_worker is None:
            self.local += 1
            request = SequenceRequest(request_id=request_id, prompt=prompt, max_tokens=output_tokens)
            self._router.sent(decode_worker, request_id, decision.prefill_tokens, now, route.tokens)
            self._submit(self._workers[decode_worker], request, now)
            return
        self.remote += 1
        request = SequenceRequest(
            request_id=request_id, prompt=prompt, max_tokens=output_tokens, role=Role.PREFILL
        )
        giver = self._workers[decision.prefill_worker]
        if output_tokens > 1:
            taken = msgspec.structs.replace(request, role=Role.DECODE, receives=True)
            self._handoffs[request_id] = _Handoff(
                request=taken, giver=giver, taker=self._workers[decode_worker]
            )
        self._router.sent(giver.card.worker_id, request_id, decision.prefill_tokens, now, route.tokens)
        self._submit(giver, request, now)

    def _submit(self, worker: HandoffWorker, request: SequenceRequest, now: float) -> None:
        worker.take_request(request, now)
        self._look(worker, now)

    def _look(self, worker: HandoffWorker, now: float) -> None:
        """Something happened at a worker: let it begin a step if it stands still."""
        if not worker.busy:
            self._step(self._posts[worker.card.worker_id], now)

    def _step(self, post: _Post, now: float) -> None:
        super()._step(post, now)
        worker = self._workers[post.worker.card.worker_id]
        moves, worker.moves = worker.moves, []
        for move in moves:
            self._move(worker, move, now)

    def _move(self, worker: HandoffWorker, move: Instruction, now: float) -> None:
        assert isinstance(move, OfferKv | AdvanceKv | SealKv | PullKv | WithdrawKv)
        if isinstance(move, WithdrawKv):
            self._at(now, lambda: self._release(worker, move.request_id))
            return
        handoff = self._handoffs.get(move.request_id)
        if handoff is None:
            return  # it ends with its first token: nobody will take the cache
        if isinstance(move, PullKv):
            handoff.pulling = True
            handoff.moved = move.from_token
            handoff.moved_tokens = move.tokens - move.from_token
        elif isinstance(move, SealKv):
            handoff.first_token = move.first_token
            handoff.ready = len(handoff.request.prompt)
        else:
            handoff.ready = move.ready
        offers = isinstance(move, OfferKv) if self._setting.early_handoff else isinstance(move, SealKv)
        if offers:
            # Over the frontend: one way to it, one on to the decode worker.
            self._at(now + 2 * self._config.message_delay_s, lambda: self._offer(handoff))
        self._progress(handoff, now)

    def _offer(self, handoff: _Handoff) -> None:
        now = self._clock.now()
        request, taker = handoff.request, handoff.taker
        self._router.sent(taker.card.worker_id, request.request_id, 0, now, len(request.prompt))
        self._submit(taker, request, now)

    def _progress(self, handoff: _Handoff, now: float) -> None:
        """Put on the link what is ready, and end the pull when all is through."""
        if not handoff.pulling:
            return
        taker, fresh = handoff.taker, handoff.ready - handoff.moved
        if fresh > 0:
            busy_s = fresh * self._setting.transfer_token_ms / 1000
            handoff.moved = handoff.ready
            handoff.moving_s += busy_s
            handoff.moved_at = taker.link_free_at = max(now, taker.link_free_at) + busy_s
        if handoff.first_token is not None and handoff.moved == len(handoff.request.prompt):
            handoff.pulling = False
            fixed_s = self._setting.transfer_fixed_ms / 1000
            handoff.moving_s += fixed_s
            self._at(max(now, handoff.moved_at) + fixed_s, lambda: self._arrived(handoff))

    def _arrived(self, handoff: _Handoff) -> None:
        now = self._clock.now()
        request_id, first_token = handoff.request.request_id, handoff.first_token
        assert first_token is not None
        del self._handoffs[request_id]
        moving_ms = handoff.moving_s * 1000
        handoff.taker.kv_arrived(KvArrived(request_id, first_token, handoff.moved_tokens, moving_ms), now)
        self._look(handoff.taker, now)
        self._release(handoff.giver, request_id)

    def _release(self, giver: HandoffWorker, request_id: RequestId) -> None:
        now = self._clock.now()
        giver.released(request_id, now)
        self._look(giver, now)
