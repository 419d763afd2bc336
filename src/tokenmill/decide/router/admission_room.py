"""Which workers are busy, and whether the plant as a whole has room: stage by stage.

Exists so that the queue asks one question, and the router is told whom to pass over. It must not know the
queue, policies or I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from enum import Enum, auto

from tokenmill.decide.router.admission_words import BusyThresholds
from tokenmill.decide.router.admission_worker import WorkerRoom
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.metrics import StepMetrics


class Gate(Enum):
    """Whether a new request may go to the workers."""

    OPEN = auto()
    """Some worker, or pair of workers, is not busy."""
    LOCAL = auto()
    """All prefill workers are busy, a decode worker is not: it may do the prefill itself, if that pays."""
    BUSY = auto()
    """Nobody has room."""
    NONE = auto()
    """There is nobody."""


class _Count:
    """How many workers of a role there are, and how many of them are busy."""

    __slots__ = ("all", "busy")

    def __init__(self) -> None:
        self.all = 0
        self.busy = 0

    @property
    def some_open(self) -> bool:
        return self.busy < self.all


def _counts(rooms: Iterable[WorkerRoom]) -> dict[Role, _Count]:
    counts = {role: _Count() for role in Role}
    for room in rooms:
        count = counts[room.card.role]
        count.all += 1
        count.busy += room.busy
    return counts


class PlantRoom:
    """All workers that may be chosen, and whether they, side by side, have room."""

    def __init__(self, thresholds: BusyThresholds) -> None:
        self._thresholds = thresholds
        self._workers: dict[WorkerId, WorkerRoom] = {}
        # Decode workers promised a sequence that its prefill worker has now, by sequence.
        self._promised: dict[RequestId, WorkerId] = {}
        # Where sequences are before their first token; bounded by this frontend's open streams.
        self._prefilling: dict[RequestId, WorkerId] = {}
        self.version = 0
        """Grows when a worker comes or goes."""
        self.judgements = 0
        """Grows when a worker becomes busy, ceases to be, comes or goes."""
        self.gate = Gate.NONE
        self._counts = _counts(())
        self._busy_workers: frozenset[WorkerId] | None = None

    # Facts ---------------------------------------------------------------------------------------------

    def worker_ready(self, card: WorkerCard) -> None:
        """A worker came or its card changed; it may be chosen."""
        known = self._workers.get(card.worker_id)
        if known is None:
            self._workers[card.worker_id] = WorkerRoom(card, self._thresholds)
        else:
            known.described(card)
            known.refresh()
        self._recount()

    def worker_gone(self, worker: WorkerId) -> None:
        """A worker may not be chosen any more."""
        if self._workers.pop(worker, None) is not None:
            self._recount()

    def load_reported(self, worker: WorkerId, metrics: StepMetrics, now: float) -> None:
        """A worker told its load."""
        room = self._workers.get(worker)
        if room is not None:
            room.reported(metrics, now)
            self._refresh(room)

    def promised(self, decode: WorkerId, prefill: WorkerId, request_id: RequestId, tokens: int) -> None:
        """A sequence goes to ``prefill`` now and from there to ``decode``, which needs room for it."""
        room = self._workers.get(decode)
        if room is not None and prefill != decode:
            self._promised[request_id] = decode
            room.promised(request_id, tokens)
            self._refresh(room)

    def likely_computed(self, worker: WorkerId, prompt_tokens: int) -> int:
        """Return how many of a prompt's tokens a worker will not find cached, going by its other prompts."""
        room = self._workers.get(worker)
        return prompt_tokens if room is None else room.likely_computed(prompt_tokens)

    def sent(
        self, worker: WorkerId, request_id: RequestId, kv_tokens: int, prefill_tokens: int, now: float
    ) -> None:
        """A stream was opened to a worker."""
        if self._promised.get(request_id) == worker:
            del self._promised[request_id]  # counted since the promise
        room = self._workers.get(worker)
        if room is not None:
            if prefill_tokens:
                self._prefilling[request_id] = worker
            room.sent(request_id, kv_tokens, prefill_tokens, now)
            self._refresh(room)

    def released(self, request_id: RequestId) -> None:
        """A sequence is over: nothing is promised to it any more."""
        worker = self._promised.get(request_id)
        if worker is not None:
            self.ended(worker, request_id)

    def prefilled(self, request_id: RequestId, now: float) -> None:
        """A sequence's first token came."""
        room = self._workers.get(self._prefilling.pop(request_id, WorkerId("")))
        if room is not None:
            room.prefilled(request_id, now)
            self._refresh(room)

    def ended(self, worker: WorkerId, request_id: RequestId) -> None:
        """A stream to a worker is over."""
        if self._prefilling.get(request_id) == worker:
            del self._prefilling[request_id]
        for name in (worker, self._promised.pop(request_id, worker)):
            room = self._workers.get(name)
            if room is not None:
                room.ended(request_id)
                self._refresh(room)

    # Judgement -----------------------------------------------------------------------------------------

    def _refresh(self, room: WorkerRoom) -> None:
        if room.refresh():
            self._counts[room.card.role].busy += 1 if room.busy else -1
            self._judge()

    def _recount(self) -> None:
        self.version += 1
        self._counts = _counts(self._workers.values())
        self._judge()

    def _judge(self) -> None:
        self.judgements += 1
        self._busy_workers = None
        prefill, decode, both = (self._counts[role] for role in (Role.PREFILL, Role.DECODE, Role.BOTH))
        if not decode.all and not both.all:
            self.gate = Gate.NONE
        elif both.some_open or (decode.some_open and (prefill.some_open or not prefill.all)):
            self.gate = Gate.OPEN
        else:
            self.gate = Gate.LOCAL if decode.some_open else Gate.BUSY

    @property
    def busy_workers(self) -> frozenset[WorkerId]:
        """Those to pass over: busy, while another one that can do the same is not."""
        if self._busy_workers is None:
            self._busy_workers = self._passed_over()
        return self._busy_workers

    def _passed_over(self) -> frozenset[WorkerId]:
        counts = self._counts
        prefill_open = counts[Role.PREFILL].some_open
        decode_open = counts[Role.DECODE].some_open or counts[Role.BOTH].some_open
        return frozenset(
            name
            for name, room in self._workers.items()
            if room.busy and (prefill_open if room.card.role is Role.PREFILL else decode_open)
        )

    def is_busy(self, worker: WorkerId | None) -> bool:
        """Whether a worker is busy; False for None and for one that is not known."""
        room = None if worker is None else self._workers.get(worker)
        return room is not None and room.busy

    def has_other_than(self, excluded: AbstractSet[WorkerId]) -> bool:
        """Whether someone, busy or not, could serve a sequence that may not go to ``excluded``."""
        return any(
            room.card.role is not Role.PREFILL and name not in excluded
            for name, room in self._workers.items()
        )

    def one_stage_workers(self) -> frozenset[WorkerId]:
        """Those that do one stage only."""
        rooms = self._workers.values()
        return frozenset(room.card.worker_id for room in rooms if room.card.role is not Role.BOTH)

    def workers(self) -> tuple[WorkerRoom, ...]:
        """All that may be chosen."""
        return tuple(self._workers.values())

    def validate(self) -> None:
        """Check what must always hold; for tests."""
        counts = _counts(self._workers.values())
        assert {role: (one.all, one.busy) for role, one in counts.items()} == {
            role: (one.all, one.busy) for role, one in self._counts.items()
        }
        assert self.busy_workers == self._passed_over()
        for room in self._workers.values():
            room.validate()
