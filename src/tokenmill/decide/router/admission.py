r"""Who may go to the workers now, who waits, and who is refused: a plain object, without I/O.

Exists so that a plant that is asked for too much serves what it can at full speed, in an order that is fair,
and says no to the rest early and honestly. Who of the workers gets a request is the router's business: this
decides when.

    Arrived -> waits -> Place -> Placed -> ... -> Ended
                 |        \--> PassedOver -> waits
                 +--> Refuse      (full, deadline, patience, nobody there)
                 +--> Cancelled

It must not know HTTP, sockets, clocks or policies. While ``open`` is true nobody waits who could go: a shell
then routes at once and needs no event of this object.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from tokenmill.decide.router.admission_room import Gate, PlantRoom
from tokenmill.decide.router.admission_words import (
    MAX_PRIORITY,
    AdmissionEvent,
    AdmissionInstruction,
    AdmissionSettings,
    AdmissionStats,
    Arrived,
    Cancelled,
    Ended,
    PassedOver,
    Place,
    Placed,
    Refuse,
    RefusedFor,
    WorkersChanged,
)
from tokenmill.decide.router.drain_rate import DrainRate
from tokenmill.decide.router.fair_level import Waiting
from tokenmill.decide.router.fair_queue import FairQueue
from tokenmill.protocol.ids import RequestId

_PAUSE_S = 0.01
"""Before the router is asked again about one that it would have given to busy workers. Facts come often."""

_LEAST_RETRY_S = 1.0
_LONGEST_RETRY_S = 600.0


class Pause:
    """Until when, or until which change of the room, there is no use in asking."""

    __slots__ = ("_judgements", "until")

    def __init__(self) -> None:
        self.until = 0.0
        """0: no pause."""
        self._judgements = 0

    def begin(self, room: PlantRoom, now: float) -> None:
        """Ask no more for a while."""
        self.until = now + _PAUSE_S
        self._judgements = room.judgements

    def holds(self, room: PlantRoom, now: float) -> bool:
        """Whether it is still on."""
        if now < self.until and room.judgements == self._judgements:
            return True
        self.until = 0.0
        return False


class Admission:
    """Mutated only through ``handle`` and the facts of ``room``.

    What waits is bounded by the settings. Replays and sequences whose request is begun come above these
    bounds, and are bounded by client connections.
    """

    def __init__(self, settings: AdmissionSettings | None = None) -> None:
        self.settings = settings or AdmissionSettings()
        self.room = PlantRoom(self.settings.busy)
        self._queue = FairQueue(self.settings.tenant_weights, level_turn_s=self.settings.level_turn_s)
        self._rate = DrainRate()
        self._waiting: dict[RequestId, Waiting] = {}  # in order of arrival; parked ones too
        self._parked: dict[RequestId, Waiting] = {}  # nobody at all may have them; in order of parking
        self._parked_tokens = 0
        self._groups: dict[str, dict[RequestId, Waiting]] = {}
        self._placing: Waiting | None = None
        self._pause = Pause()
        self._replays_pause = Pause()
        # Level and tenant of what left the queue for a worker and has not ended; bounded by open streams.
        self._charged: dict[RequestId, tuple[int, str]] = {}
        # May hold some that have left: at most half of it and some more, see ``_add``.
        self._due: list[tuple[float, int, Waiting]] = []
        self._nobody_since: float | None = 0.0  # None: there are workers

    @property
    def open(self) -> bool:
        """Whether a new request may be routed at once: someone has room, and nobody waits for it."""
        return self.room.gate is Gate.OPEN and not self._queue.tokens

    def is_charged(self, request_id: RequestId) -> bool:
        """Whether ``Ended`` is wanted of a sequence: it went through the queue."""
        return request_id in self._charged

    def handle(self, event: AdmissionEvent, now: float) -> list[AdmissionInstruction]:
        """Take one fact; return what is to be done, in order. A ``Place`` is the last one."""
        if self.room.gate is not Gate.NONE:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = now
        if isinstance(event, Arrived):
            refused = self._on_arrived(event, now)
        elif isinstance(event, Placed):
            refused = self._on_placed(event, now)
        elif isinstance(event, PassedOver):
            return self._on_passed_over(event, now)
        elif isinstance(event, Cancelled):
            refused = self._on_cancelled(event.request_id, now)
        elif isinstance(event, Ended):
            refused = self._on_ended(event)
        else:
            refused = self._on_time(isinstance(event, WorkersChanged), now)
        return [*refused, *self._next(now)]

    # Arriving ------------------------------------------------------------------------------------------

    def _on_arrived(self, event: Arrived, now: float) -> list[AdmissionInstruction]:
        settings = self.settings
        assert event.request_id not in self._waiting, "it waits already"
        due_at = now + settings.max_wait_s
        entry = Waiting(
            event.request_id,
            tenant=event.tenant,
            level=max(-MAX_PRIORITY, min(MAX_PRIORITY, event.priority)),
            tokens=max(1, event.tokens),
            arrived_at=now,
            due_at=due_at if event.deadline_at is None else min(due_at, event.deadline_at),
            deadline_at=event.deadline_at,
            group=event.group,
            begun=event.replay or (event.sibling and self._is_begun(event.group)),
            replay=event.replay,
        )
        refused = self._make_room(entry, now)
        if refused is None:
            return [self._refusal(entry, RefusedFor.QUEUE_FULL, now)]
        too_late = self._too_late(entry, now)
        if too_late is not None:
            return [too_late]
        for refusal in refused:
            self._remove(self._waiting[refusal.request_id], now)
        self._add(entry, now)
        return list(refused)

    def _is_begun(self, group: str) -> bool:
        """Whether some sequence of the request is served: those that came before this one, if none waits."""
        return all(entry.begun for entry in self._groups.get(group, {}).values())

    def _make_room(self, entry: Waiting, now: float) -> list[Refuse] | None:
        """Who must go for it; None: it cannot stay."""
        settings, queue = self.settings, self._queue
        count_over = len(self._waiting) + 1 - settings.max_queued
        tokens_over = queue.tokens + self._parked_tokens + entry.tokens - settings.max_queued_tokens
        if entry.begun or (count_over <= 0 and tokens_over <= 0):
            return []
        victims = queue.victims_for(entry, count_over, tokens_over)
        if victims is None:
            return None
        return [self._refusal(victim, RefusedFor.EVICTED, now) for victim in victims]

    def _too_late(self, entry: Waiting, now: float) -> Refuse | None:
        """Its refusal, if it has a deadline of its own that its turn will, as measured, not meet."""
        rate = self._rate.per_s(now)
        if entry.deadline_at is None or entry.begun or rate is None or self.room.gate is Gate.NONE:
            return None
        late_s = self._queue.tokens_ahead(entry.level, entry.tenant) / rate - (entry.deadline_at - now)
        if late_s <= 0:
            return None
        return Refuse(entry.request_id, RefusedFor.TOO_LATE, _bounded(late_s))

    def _add(self, entry: Waiting, now: float) -> None:
        self._waiting[entry.request_id] = entry
        if entry.group:
            self._groups.setdefault(entry.group, {})[entry.request_id] = entry
        self._queue.push(entry, now)
        if len(self._due) > 2 * len(self._waiting) + 16:
            self._due = [one for one in self._due if self._is_waiting(one[2])]
            heapify(self._due)
        heappush(self._due, (entry.due_at, entry.number, entry))
        self._watch_rate(now)

    # Leaving -------------------------------------------------------------------------------------------

    def _remove(self, entry: Waiting, now: float) -> None:
        """It waits no longer, wherever it was."""
        del self._waiting[entry.request_id]
        if entry.group:
            group = self._groups[entry.group]
            del group[entry.request_id]
            if not group:
                del self._groups[entry.group]
        if self._parked.pop(entry.request_id, None) is not None:
            self._parked_tokens -= entry.tokens
        elif entry.queued:
            self._queue.remove(entry)
        self._watch_rate(now)

    def _watch_rate(self, now: float) -> None:
        self._rate.waits(bool(self._queue.tokens) and self.room.gate is not Gate.NONE, now)

    def _on_cancelled(self, request_id: RequestId, now: float) -> list[AdmissionInstruction]:
        entry = self._waiting.get(request_id)
        if entry is not None:
            self._remove(entry, now)
            if entry is self._placing:
                self._placing = None
        return []

    def _on_ended(self, event: Ended) -> list[AdmissionInstruction]:
        charged = self._charged.pop(event.request_id, None)
        if charged is not None and event.output_tokens:
            self._queue.charge(*charged, self.settings.charges.output * event.output_tokens)
        return []

    # Placing -------------------------------------------------------------------------------------------

    def _next(self, now: float) -> list[AdmissionInstruction]:
        room = self.room
        if self._placing is not None or room.gate in (Gate.BUSY, Gate.NONE) or self._pause.holds(room, now):
            return []
        self._placing = self._queue.first(now, pass_replays=self._replays_pause.holds(room, now))
        return [] if self._placing is None else [Place(self._placing.request_id)]

    def _on_placed(self, event: Placed, now: float) -> list[AdmissionInstruction]:
        entry = self._answered(event.request_id)
        charges = self.settings.charges
        charge = charges.input * event.uncached_tokens + charges.cached * event.cached_tokens
        if not entry.replay:
            self._charged[entry.request_id] = (entry.level, entry.tenant)
            for sibling in self._groups.get(entry.group, {}).values():
                sibling.begun = True
        self._rate.admitted(entry.tokens, now)
        self._queue.take(entry, charge, now)
        self._remove(entry, now)
        return []

    def _on_passed_over(self, event: PassedOver, now: float) -> list[AdmissionInstruction]:
        entry = self._answered(event.request_id)
        if not event.nobody:  # those that it would go to are busy; it keeps its turn
            if entry.replay:  # which those may be that it has lost: others may have them meanwhile
                self._replays_pause.begin(self.room, now)
                return self._next(now)
            self._pause.begin(self.room, now)
            return []
        entry.parked_at = now
        self._queue.remove(entry)
        self._parked[entry.request_id] = entry
        self._parked_tokens += entry.tokens
        self._watch_rate(now)
        return self._next(now)

    def _answered(self, request_id: RequestId) -> Waiting:
        entry, self._placing = self._placing, None
        assert entry is not None
        assert entry.request_id == request_id, "only what was to be placed can have been"
        return entry

    # Time ----------------------------------------------------------------------------------------------

    def _on_time(self, workers_changed: bool, now: float) -> list[AdmissionInstruction]:
        if workers_changed:
            for entry in self._parked.values():
                entry.parked_at = None
                self._queue.push(entry, now)
            self._parked.clear()
            self._parked_tokens = 0
        overdue = self._overdue(now)
        refused = [self._refusal(entry, reason, now) for entry, reason in overdue]
        for entry, _ in overdue:
            self._remove(entry, now)
        self._watch_rate(now)
        return list(refused)

    def _overdue(self, now: float) -> list[tuple[Waiting, RefusedFor]]:
        found: dict[RequestId, tuple[Waiting, RefusedFor]] = {}
        while self._due and (self._due[0][0] <= now or not self._is_waiting(self._due[0][2])):
            entry = heappop(self._due)[2]
            if not self._is_waiting(entry):
                continue
            if entry.deadline_at is not None and entry.deadline_at <= now:
                found[entry.request_id] = (entry, RefusedFor.DEADLINE)
            elif not entry.begun or entry.replay:
                found[entry.request_id] = (entry, RefusedFor.WAITED)
            elif entry.deadline_at is not None:
                heappush(self._due, (entry.deadline_at, entry.number, entry))
        patience_s = self.settings.no_worker_wait_s
        for entry in self._parked.values():
            assert entry.parked_at is not None
            if entry.parked_at + patience_s > now:
                break
            found.setdefault(entry.request_id, (entry, RefusedFor.NO_WORKER))
        if self._nobody_since is not None:
            for entry in self._waiting.values():
                if max(self._nobody_since, entry.arrived_at) + patience_s > now:
                    break
                found.setdefault(entry.request_id, (entry, RefusedFor.NO_WORKER))
        return list(found.values())

    def _is_waiting(self, entry: Waiting) -> bool:
        return self._waiting.get(entry.request_id) is entry

    def next_due_at(self) -> float | None:
        """Return when ``TimePassed`` is to be told next at the latest; None: nobody waits."""
        while self._due and not self._is_waiting(self._due[0][2]):
            heappop(self._due)
        if not self._due:
            return None
        times = [self._due[0][0]]
        if self._queue.tokens and self.room.gate in (Gate.OPEN, Gate.LOCAL):
            until = self._pause.until or self._replays_pause.until
            times += [until] if until else []
        patience_s = self.settings.no_worker_wait_s
        parked = next(iter(self._parked.values()), None)
        if parked is not None and parked.parked_at is not None:
            times.append(parked.parked_at + patience_s)
        if self._nobody_since is not None and self.room.gate is Gate.NONE:
            oldest = next(iter(self._waiting.values()))
            times.append(max(self._nobody_since, oldest.arrived_at) + patience_s)
        return min(times)

    # Figures -------------------------------------------------------------------------------------------

    def _refusal(self, entry: Waiting, reason: RefusedFor, now: float) -> Refuse:
        return Refuse(entry.request_id, reason, self._retry_after_s(entry.level, entry.tenant, now))

    def _retry_after_s(self, level: int, tenant: str, now: float) -> float:
        """When what waits before a newcomer will have gone, at the rate measured."""
        rate = self._rate.per_s(now)
        if rate is None:
            return _LEAST_RETRY_S
        return _bounded(self._queue.tokens_ahead(level, tenant) / rate)

    def stats(self, now: float) -> AdmissionStats:
        """Return what waits now, for metrics and health."""
        workers = self.room.workers()
        busy = sum(room.busy for room in workers)
        return AdmissionStats(
            queued=len(self._waiting),
            queued_tokens=self._queue.tokens,
            tenants=self._queue.tenants(),
            open_workers=len(workers) - busy,
            busy_workers=busy,
            drain_tokens_per_s=self._rate.per_s(now),
            retry_after_s=self._retry_after_s(0, "", now) if self._waiting else 0.0,
        )

    def service_of(self, tenant: str, priority: int = 0) -> float:
        """Return a tenant's virtual token counter on a level: charged tokens over its weight."""
        return self._queue.counter(priority, tenant)

    def validate(self) -> None:
        """Check what must always hold; for tests."""
        self._queue.validate()
        self.room.validate()
        queued = {entry.request_id: entry for entry in self._queue}
        assert not queued.keys() & self._parked.keys()
        assert {**queued, **self._parked} == self._waiting
        bounded = [entry for entry in self._waiting.values() if not entry.begun]
        assert len(bounded) <= self.settings.max_queued
        assert sum(entry.tokens for entry in bounded) <= self.settings.max_queued_tokens
        assert self._parked_tokens == sum(entry.tokens for entry in self._parked.values())
        grouped = {name: one for group in self._groups.values() for name, one in group.items()}
        assert grouped == {name: one for name, one in self._waiting.items() if one.group}
        assert all(self._groups.values())
        due = {entry.request_id for _, _, entry in self._due}
        assert all(name in due for name, entry in self._waiting.items() if not entry.begun or entry.replay)
        assert self._placing is None or self._is_waiting(self._placing)
        assert not any(name in self._charged for name, one in self._waiting.items() if not one.replay)


def _bounded(retry_after_s: float) -> float:
    return min(_LONGEST_RETRY_S, max(_LEAST_RETRY_S, retry_after_s))
