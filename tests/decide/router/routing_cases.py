"""Workers, prompts and a router to try things on."""

from __future__ import annotations

from tokenmill.decide.router.router import Router
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.protocol.block_hashes import block_hashes, pack_tokens
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.kv_events import BlocksRemoved, BlocksStored, CacheCleared, CacheTier, KvEvents
from tokenmill.protocol.metrics import StepMetrics

P, D, B = Role.PREFILL, Role.DECODE, Role.BOTH
BLOCK = 4


def card(name: str, role: Role = B, **fields) -> WorkerCard:
    return WorkerCard(
        **{
            "worker_id": WorkerId(name),
            "role": role,
            "stage": role.value,
            "state": WorkerState.READY,
            "address": "tcp://h:1",
            "engine": "sim",
            "model": "m",
            "max_model_len": 100_000,
            "block_tokens": BLOCK,
            "kv_blocks": 1000,
            "max_sequences": 10,
            "transports": ["tcp"],
            "fingerprint": "f",
            **fields,
        }
    )


def request(tokens, name: str = "r", **fields) -> RouteRequest:
    return RouteRequest(
        request_id=RequestId(name), packed=pack_tokens(list(tokens)), output_tokens=5, **fields
    )


class Plant:
    """A router and the workers that feed it; a worker's events are numbered as a real one's."""

    def __init__(self, *cards: WorkerCard, seed: int = 1, policy=None, policy_name="kv", **settings) -> None:
        self.router = Router(RouterSettings(policy=policy_name, **settings), seed=seed, policy=policy)
        self.numbers: dict[str, int] = {}
        self.blocks: dict[str, int] = {}
        self.now = 100.0
        self.requests = 0
        for each in cards:
            self.join(each)

    def join(self, worker: WorkerCard) -> None:
        self.router.worker_ready(worker)
        self.numbers[worker.worker_id] = 0
        self.blocks[worker.worker_id] = worker.block_tokens

    def tell(self, worker: str, *events) -> bool:
        batch = KvEvents(self.numbers[worker], list(events))
        self.numbers[worker] += len(events)
        return self.router.kv_changed(WorkerId(worker), batch, self.now)

    def caches(self, worker: str, tokens, tier: CacheTier = CacheTier.DEVICE, salt: str = "") -> bool:
        hashes = block_hashes(list(tokens), self.blocks[worker], salt)
        first = [] if self.numbers[worker] else [CacheCleared()]
        return self.tell(worker, *first, BlocksStored(hashes, None, tier))

    def drops(self, worker: str, tokens, blocks: int, tier: CacheTier = CacheTier.DEVICE) -> bool:
        """The last ``blocks`` blocks of a prefix leave the cache."""
        hashes = block_hashes(list(tokens), self.blocks[worker])
        return self.tell(worker, BlocksRemoved(hashes[-blocks:], tier))

    def load(self, worker: str, **metrics) -> None:
        self.router.load_reported(WorkerId(worker), StepMetrics(**metrics), self.now)

    def route(self, tokens, excluded=frozenset(), send: bool = False, **fields) -> Decision | None:
        self.requests += 1
        wanted = request(tokens, f"r{self.requests}", **fields)
        decision = self.router.route(wanted, self.now, frozenset(map(WorkerId, excluded)))
        if send and decision is not None:
            self.send(decision, wanted)
        return decision

    def send(self, decision: Decision, wanted: RouteRequest) -> None:
        """Open the streams of a decision as a frontend does."""
        first = decision.prefill_worker or decision.decode_worker
        sent = self.router.sent
        sent(first, wanted.request_id, decision.prefill_tokens, self.now, wanted.tokens)
        if decision.prefill_worker is not None:
            sent(decision.decode_worker, wanted.request_id, 0, self.now, wanted.tokens)

    def chosen(self, tokens, **more) -> str | None:
        decision = self.route(tokens, **more)
        return decision and str(decision.decode_worker)


def pair(decision: Decision | None) -> tuple | None:
    return decision and (decision.decode_worker, decision.prefill_worker)
