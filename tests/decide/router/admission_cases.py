"""What admission's tests share: workers, arrivals, and a shell that does as it is told."""

from __future__ import annotations

from tokenmill.decide.router.admission import Admission
from tokenmill.decide.router.admission_words import (
    AdmissionSettings,
    Arrived,
    Cancelled,
    Ended,
    PassedOver,
    Place,
    Placed,
    Refuse,
    RefusedFor,
    RoomChanged,
    TimePassed,
    WorkersChanged,
)
from tokenmill.protocol.card import WorkerCard, WorkerState
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.metrics import StepMetrics


def card(name: str, role: Role = Role.BOTH, **fields) -> WorkerCard:
    """A worker with room for 1,600 tokens and ten sequences."""
    return WorkerCard(
        **{
            "worker_id": WorkerId(name),
            "role": role,
            "stage": role.value,
            "state": WorkerState.READY,
            "address": "tcp://h:1",
            "engine": "sim",
            "model": "m",
            "max_model_len": 4096,
            "block_tokens": 16,
            "kv_blocks": 100,
            "max_sequences": 10,
            "transports": ["tcp"],
            "fingerprint": "f",
            **fields,
        }
    )


FULL = StepMetrics(kv_blocks_used=100, kv_blocks_total=100)
EMPTY = StepMetrics(kv_blocks_total=100)


class Desk:
    """A plant of one worker that is busy or not as the test says, and what became of each sequence."""

    def __init__(self, *, busy: bool = True, **settings) -> None:
        self.admission = Admission(AdmissionSettings(**settings))
        self.now = 1000.0
        self.placed: list[str] = []
        self.refused: dict[str, Refuse] = {}
        self.admission.room.worker_ready(card("w"))
        self.set_busy(busy)

    def set_busy(self, busy: bool) -> None:
        """The worker says so; nobody is placed."""
        self.admission.room.load_reported(WorkerId("w"), FULL if busy else EMPTY, self.now)

    def handle(self, event) -> list[Refuse]:
        """Tell it, and return the refusals. A place that is offered is left."""
        refusals = []
        for instruction in self.admission.handle(event, self.now):
            if isinstance(instruction, Refuse):
                refusals.append(instruction)
                self.refused[instruction.request_id] = instruction
            else:
                self.admission.handle(PassedOver(instruction.request_id), self.now)
        self.admission.validate()
        return refusals

    def arrive(self, name: str, tokens: int = 10, **fields) -> list[Refuse]:
        return self.handle(Arrived(request_id=RequestId(name), tokens=tokens, **fields))

    def reasons(self) -> dict[str, RefusedFor]:
        return {name: refusal.reason for name, refusal in self.refused.items()}

    def admit(self, count: int, *, cached: int = 0) -> list[str]:
        """Let so many be placed, one after the other, and return them."""
        self.now += 0.02  # beyond any pause
        self.set_busy(False)
        names: list[str] = []
        waiting = {entry.request_id: entry for entry in self.admission._queue}
        instructions = self.admission.handle(RoomChanged(), self.now)
        while instructions and len(names) < count:
            *_, place = instructions
            if not isinstance(place, Place):
                break
            names.append(place.request_id)
            if len(names) == count:
                self.set_busy(True)
            tokens = waiting[place.request_id].tokens
            placed = Placed(place.request_id, tokens - cached, cached)
            instructions = self.admission.handle(placed, self.now)
        self.set_busy(True)
        self.placed += names
        self.admission.validate()
        return names

    def end(self, name: str, output_tokens: int = 0) -> None:
        self.handle(Ended(RequestId(name), output_tokens))

    def cancel(self, name: str) -> None:
        self.handle(Cancelled(RequestId(name)))

    def wait(self, seconds: float) -> list[Refuse]:
        self.now += seconds
        return self.handle(TimePassed())

    def workers_changed(self) -> list[Refuse]:
        return self.handle(WorkersChanged())
