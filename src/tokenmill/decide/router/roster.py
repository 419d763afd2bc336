"""The workers that may be chosen, with their loads, as the cost function wants them.

Exists so that what does not depend on a request is reckoned when a fact changes, not for each request. It
must not know prompts or policies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import NamedTuple

from tokenmill.decide.perf.class_times import StepTimes, WorkerTimes
from tokenmill.decide.perf.table import TableStepTime
from tokenmill.decide.router.cost import CostWeights, DeviceSpeed, LoadFacts, load_terms
from tokenmill.decide.router.decode_weights import DecodeWeights
from tokenmill.decide.router.index import Owner
from tokenmill.decide.router.load import WorkerLoad
from tokenmill.decide.router.masks import slots_of
from tokenmill.decide.router.speed import ClassSpeed, device_class
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.handoffs import can_hand_over
from tokenmill.protocol.ids import Role, WorkerId
from tokenmill.protocol.metrics import StepMetrics


class WorkerFacts(NamedTuple):
    """One worker as it was known at one moment. Never changed: a new fact makes a new one.
    ``sequence_weight``: of a decoding sequence there (``decode_weights``)."""

    card: WorkerCard
    load: LoadFacts
    speed: DeviceSpeed
    sequence_weight: float = 1.0


ALIKE_S = 0.5
"""For so long a decode step like one that was learned from teaches nothing: same batch, same time."""

ALIKE_SHARE = 0.03


class Seat:
    """One worker's place. ``facts`` is what decisions are made of; the rest is what makes the facts.
    ``reported``: the last load and when it came, where it has not been looked at yet."""

    __slots__ = (
        "_learned",
        "_learned_at",
        "card",
        "facts",
        "kind",
        "load",
        "owner",
        "reported",
        "speed_of",
        "times",
    )

    def __init__(self, card: WorkerCard, owner: Owner, times: WorkerTimes) -> None:
        self.card = card
        self.kind = device_class(card)
        self.owner = owner
        self.times = times
        self.load = WorkerLoad()
        self.facts = WorkerFacts(card, LoadFacts(), DeviceSpeed())
        self.reported: tuple[StepMetrics, float] | None = None
        self.speed_of: tuple[int, float] | None = None
        self._learned = StepMetrics()
        self._learned_at = -math.inf

    def learn(self, metrics: StepMetrics, now: float) -> None:
        """Let the worker's times learn from a report, unless it is like the one before."""
        last = self._learned
        if (
            now - self._learned_at < ALIKE_S
            and metrics.decode_tokens == last.decode_tokens
            and is_plain(metrics, last)
            and abs(metrics.step_ms - last.step_ms) <= ALIKE_SHARE * last.step_ms
        ):
            return
        self._learned, self._learned_at = metrics, now
        self.times.observe(metrics)


def is_plain(metrics: StepMetrics, last: StepMetrics) -> bool:
    """Whether a report tells of a step that only decoded, and nothing has been handed over since ``last``."""
    return not metrics.prefill_tokens and metrics.handoffs_in_total == last.handoffs_in_total


class Group(NamedTuple):
    """Workers that a prompt meets alike: equal block size and device speed. ``slots`` are those of ``mask``;
    ``pick`` takes their values out of a list by slot."""

    block_tokens: int
    speed: DeviceSpeed
    mask: int
    slots: tuple[int, ...]
    pick: Callable[[list[float]], tuple[float, ...]]


class Roster:
    """By slot: ``facts``, and ``base``, the cost that a worker has for any request (``inf`` where there is
    none). Masks: ``serving`` workers can decode, ``decode`` of them want a prefill worker, ``prefill`` are
    those; ``alone`` can also do without. ``itl_ms``: the time between tokens that unequal workers are held
    against."""

    def __init__(self, weights: CostWeights, itl_ms: float) -> None:
        self.base: list[float] = []
        self.facts: list[WorkerFacts | None] = []
        self.seats: dict[WorkerId, Seat] = {}
        self.seat_at: list[Seat | None] = []
        self.serving = self.decode = self.prefill = self.alone = 0
        self.serving_groups: tuple[Group, ...] = ()
        self.prefill_groups: tuple[Group, ...] = ()
        self._weights = weights
        self._times = StepTimes()
        self._decode_weights = DecodeWeights(itl_ms)
        self._speeds: dict[str, ClassSpeed] = {}
        self._givers: dict[int, int] = {}
        self._stale = False
        self._changed: dict[Seat, None] = {}
        self._reported: dict[Seat, None] = {}  # the last to report last

    def come(self, card: WorkerCard, owner: Owner) -> Seat:
        """A worker came that was not here."""
        trusted = TableStepTime(card.step_table) if card.step_table is not None else None
        times = self._times.joined(card.worker_id, device_class(card), trusted=trusted)
        seat = self.seats[card.worker_id] = Seat(card, owner, times)
        self.changed(seat)
        self._stale = True
        return seat

    def card_changed(self, seat: Seat, card: WorkerCard) -> None:
        """A worker told something new of itself."""
        seat.card = card
        seat.kind = device_class(card)
        seat.speed_of = None
        self.changed(seat)
        self._stale = True

    def go(self, seat: Seat) -> None:
        """A worker is gone."""
        del self.seats[seat.card.worker_id]
        self._changed.pop(seat, None)
        self._reported.pop(seat, None)
        self._times.left(seat.card.worker_id)
        self._vacate(seat.owner.slot)

    def move(self, seat: Seat, owner: Owner) -> None:
        """A worker got another place in the index."""
        self._vacate(seat.owner.slot)
        seat.owner = owner
        self.changed(seat)

    def reported(self, seat: Seat, metrics: StepMetrics, now: float) -> None:
        """A worker told its load. It is looked at when next somebody asks; of reports that come before that,
        only the last one counts and those that teach more than how long it takes to decode."""
        before, seat.reported = seat.reported, (metrics, now)
        if before is not None:
            if not is_plain(before[0], seat.load.metrics):
                seat.load.reported(*before)
                seat.learn(*before)
            del self._reported[seat]
        self._reported[seat] = None

    def _take_in(self) -> None:
        """Look at the reports that have come."""
        for seat in self._reported:
            assert seat.reported is not None, "it has reported"
            seat.load.reported(*seat.reported)
            seat.learn(*seat.reported)
            seat.reported = None
            self._changed[seat] = None
        if self._decode_weights.is_due(len(self._reported)):
            self._weigh_decodes()
        self._reported.clear()

    def changed(self, seat: Seat) -> None:
        """A worker's facts are to be reckoned anew."""
        self._changed[seat] = None
        slot = seat.owner.slot
        while len(self.base) <= slot:
            self.base.append(math.inf)
            self.facts.append(None)
            self.seat_at.append(None)
        self.seat_at[slot] = seat

    def _weigh_decodes(self) -> None:
        """What one sequence weighs where, by what is known now."""
        seats = self.seats.values()
        if self._decode_weights.look((seat.card, seat.times, seat.load.metrics) for seat in seats):
            self._changed |= dict.fromkeys(seats)

    def _reckon(self, seat: Seat) -> None:
        card, slot = seat.card, seat.owner.slot
        speed = self._speed(seat)
        load = seat.load.facts(card.role, card.kv_blocks, card.block_tokens)
        weight = self._decode_weights.of(card.worker_id)
        seat.facts = self.facts[slot] = WorkerFacts(card, load, speed, weight)
        self.base[slot] = sum(load_terms(load, speed, self._weights, weight))

    def _speed(self, seat: Seat) -> DeviceSpeed:
        known = self._speeds.get(seat.kind)
        if known is None:
            known = self._speeds[seat.kind] = ClassSpeed()
        of = known.version(seat.times)
        if of == seat.speed_of:
            return seat.facts.speed
        speed = known.of(seat.times, seat.facts.speed)
        seat.speed_of = known.version(seat.times)
        if speed != seat.facts.speed:
            self._stale = True
        return speed

    def refresh(self) -> None:
        """Bring facts, masks and groups up to date; cheap where nothing has changed."""
        if self._reported:
            self._take_in()
        if self._stale:
            self._weigh_decodes()
        if self._changed:
            for seat in self._changed:
                self._reckon(seat)
            self._changed.clear()
        if self._stale:
            self._stale = False
            self._givers.clear()
            seats = self.seats.values()
            self.prefill = _mask(seats, Role.PREFILL)
            self.decode = _mask(seats, Role.DECODE)
            self.serving = self.decode | _mask(seats, Role.BOTH)
            self.alone = self.serving & sum(seat.owner.bit for seat in seats if seat.card.alone)
            self.serving_groups = self._group(self.serving)
            self.prefill_groups = self._group(self.prefill)

    @property
    def unequal(self) -> bool:
        """Whether a sequence weighs more on some worker than on others."""
        return bool(self._decode_weights.weights)

    def mask(self, workers: Iterable[WorkerId]) -> int:
        """Return the set of those of ``workers`` that are here."""
        mask = 0
        for worker in workers:
            seat = self.seats.get(worker)
            if seat is not None:
                mask |= seat.owner.bit
        return mask

    def givers(self, slot: int) -> int:
        """Return the prefill workers that can hand over to the decode worker at ``slot``."""
        known = self._givers.get(slot)
        if known is None:
            known = 0
            taker = self.facts[slot]
            assert taker is not None, "a slot without a worker"
            for seat in self.seats.values():
                if seat.card.role is Role.PREFILL and can_hand_over(seat.card, taker.card):
                    known |= seat.owner.bit
            self._givers[slot] = known
        return known

    def _vacate(self, slot: int) -> None:
        self.base[slot] = math.inf
        self.facts[slot] = None
        self.seat_at[slot] = None
        self._stale = True

    def _group(self, members: int) -> tuple[Group, ...]:
        masks: dict[tuple[int, DeviceSpeed], int] = {}
        for seat in self.seats.values():
            if seat.owner.bit & members:
                key = seat.card.block_tokens, seat.facts.speed
                masks[key] = masks.get(key, 0) | seat.owner.bit
        return tuple(
            Group(block_tokens, speed, mask, slots, _picker(slots))
            for (block_tokens, speed), mask in masks.items()
            for slots in (tuple(sorted(slots_of(mask))),)
        )


def _mask(seats: Iterable[Seat], role: Role) -> int:
    mask = 0
    for seat in seats:
        if seat.card.role is role:
            mask |= seat.owner.bit
    return mask


def _picker(slots: tuple[int, ...]) -> Callable[[list[float]], tuple[float, ...]]:
    """Return what takes the values at ``slots`` out of a list: at C speed, 1 us for 128 of them."""
    if len(slots) == 1:
        (slot,) = slots
        return lambda values: (values[slot],)
    return itemgetter(*slots)
