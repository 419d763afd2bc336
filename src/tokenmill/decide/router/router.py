"""The router: facts about workers in, decisions out.

Exists as the one object that a frontend's shell, the simulator and tests feed and ask. It must not know
connections, clocks or HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from tokenmill.decide.router.caches import Caches
from tokenmill.decide.router.choosers import ByCost, ByPolicy, Chooser, Picked
from tokenmill.decide.router.evidence import RouteEvidence
from tokenmill.decide.router.paths import LOCAL
from tokenmill.decide.router.policies import make_policy
from tokenmill.decide.router.roster import Roster
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.decide.router.stats import RouterStats
from tokenmill.decide.router.types import Decision, RouteRequest, RouterPolicy
from tokenmill.decide.router.ways import Judge, Way
from tokenmill.decide.router.weighing import Weighing
from tokenmill.protocol.card import WorkerCard
from tokenmill.protocol.ids import RequestId, Role, WorkerId
from tokenmill.protocol.kv_events import KvEvents
from tokenmill.protocol.metrics import StepMetrics
from tokenmill.protocol.router_sync import EndedNote, PredictedNote, RouteNote, SentNote

_MOST_NOTES = 65_536
"""Notes that wait to be drained: seconds of a busy frontend. The oldest are dropped; reports make them
good."""

PolicyMaker = Callable[[], RouterPolicy]
"""Makes one policy object: called once for the workers that decode and once for those that prefill."""


class Router:
    """Chooses workers for requests. ``seed``: of what is random or rotates. ``policy``: a user's own, in
    place of the one that ``settings`` names. Facts about workers that are not here are ignored."""

    def __init__(self, settings: RouterSettings, *, seed: int, policy: PolicyMaker | None = None) -> None:
        self.settings = settings
        self.send_notes = settings.send_notes
        """Whether notes are kept for ``drain_notes``: only while somebody drains them."""
        self._roster = roster = Roster(settings.weights, settings.itl_ms)
        self._caches = Caches(settings)
        self._judge = Judge(roster, settings.weights, settings.prefill, settings.local_share)
        self._uses_cache = settings.policy == "kv" and policy is None
        choosers: list[Chooser] = []
        for side in range(2):
            if self._uses_cache:
                choosers.append(ByCost(roster, temperature_ms=settings.temperature_ms, seed=seed + side))
            else:
                made = policy() if policy else make_policy(settings.policy, seed + side)
                choosers.append(ByPolicy(roster, made))
        self._serving, self._filling = choosers
        if isinstance(self._serving, ByPolicy):
            self._uses_cache = self._serving.needs_cache
        self._notes: deque[RouteNote] = deque(maxlen=_MOST_NOTES)
        self._routed = self._remote = self._tokens = self._cached_tokens = 0

    # Facts ---------------------------------------------------------------------------------------------

    @property
    def knows_caches(self) -> bool:
        """Whether the prefill tokens of a decision are those that are not cached, and not just all."""
        return self._uses_cache

    @property
    def wants_kv(self) -> bool:
        """Whether workers should be asked for their KV events."""
        return self._uses_cache and self.settings.kv_events

    def worker_ready(self, card: WorkerCard) -> None:
        """A worker came, or its card changed; it may be chosen."""
        seat = self._roster.seats.get(card.worker_id)
        if seat is None:
            self._roster.come(card, self._caches.index.join())
        else:
            self._roster.card_changed(seat, card)

    def worker_gone(self, worker: WorkerId) -> None:
        """A worker may not be chosen any more. Its load and cache are forgotten."""
        seat = self._roster.seats.get(worker)
        if seat is not None:
            self._roster.go(seat)
            self._caches.index.leave(seat.owner)
            self._caches.index.sweep()

    def load_reported(self, worker: WorkerId, metrics: StepMetrics, now: float) -> None:
        """A worker told its load."""
        seat = self._roster.seats.get(worker)
        if seat is not None:
            self._roster.reported(seat, metrics, now)
            self._caches.index.sweep()

    def sent(
        self, worker: WorkerId, request_id: RequestId, prefill_tokens: int, now: float, tokens: int = 0
    ) -> None:
        """A stream was opened to a worker, which must compute ``prefill_tokens`` of the sequence's ``tokens``
        (0: as many; ``prefill_tokens`` is 0 where the cache comes from elsewhere)."""
        seat = self._roster.seats.get(worker)
        if seat is None:
            return
        seat.load.sent(("", request_id), prefill_tokens, now, tokens)
        self._roster.changed(seat)
        names = self._caches.sent(seat.owner, seat.card.block_tokens, request_id, now)
        if self.send_notes:
            if names:
                self._notes.append(PredictedNote(worker, names))
            self._notes.append(SentNote(worker, request_id, prefill_tokens, tokens))

    def ended(self, worker: WorkerId, request_id: RequestId) -> None:
        """A stream to a worker is over, one way or the other."""
        seat = self._roster.seats.get(worker)
        if seat is None:
            return
        seat.load.ended(("", request_id))
        self._roster.changed(seat)
        if self.send_notes:
            self._notes.append(EndedNote(worker, request_id))

    def kv_changed(self, worker: WorkerId, batch: KvEvents, now: float) -> bool:  # noqa: ARG002
        """A worker's cache changed. False: events were missed; what was known of the worker's cache is
        forgotten, and the caller must subscribe anew."""
        seat = self._roster.seats.get(worker)
        if seat is None:
            return True
        owner, complete = self._caches.changed(seat.owner, batch)
        if owner is not seat.owner:
            self._roster.move(seat, owner)
        return complete

    # Questions -----------------------------------------------------------------------------------------

    def route(
        self, request: RouteRequest, now: float, excluded: AbstractSet[WorkerId] = frozenset()
    ) -> Decision | None:
        """Return who serves ``request``, or None when nobody can. Raises ConfigError where a user's policy
        takes a worker that was not offered."""
        roster = self._roster
        roster.refresh()
        self._caches.predictions.expire(now)
        barred = roster.mask(excluded) if excluded else 0
        serving, filling = roster.serving & ~barred, roster.prefill & ~barred
        weighing = Weighing(request, roster, self.settings.weights, self._caches.finder)
        local = self._serving.choose(weighing, roster.serving_groups, serving, now)
        if local is None:
            return None
        ways = [Way(local)] if roster.alone >> local.slot & 1 else []
        if filling and (self.settings.prefill != LOCAL or not ways):
            ways += self._remote_ways(weighing, local, serving & roster.decode, filling, now)
        if not ways:  # who is best cannot do it alone, and there is nobody to go with it
            able = self._serving.choose(weighing, roster.serving_groups, serving & roster.alone, now)
            if able is None:
                return None
            ways = [Way(able)]
        way, paths = self._judge.best(weighing.tokens, ways) if len(ways) > 1 else (ways[0], [])
        if self._uses_cache:
            self._caches.routed(request.request_id, weighing.names(), 1 if way.prefill is None else 2)
        evidence = RouteEvidence(
            weighing.tokens,
            tuple(roster.facts),
            serving | filling,
            weighing.seen,
            self.settings.weights,
            way,
            paths,
        )
        return self._decided(way, weighing.tokens, evidence)

    def _remote_ways(
        self, weighing: Weighing, local: Picked, takers: int, filling: int, now: float
    ) -> list[Way]:
        """Return the ways over a prefill worker: with the worker that would do it alone, and by cost also
        with the least loaded one, whose lack of the prompt's cache matters little then."""
        roster = self._roster
        decoders = [local] if takers >> local.slot & 1 else []
        if isinstance(self._serving, ByCost):
            decoders += self._serving.lightest(weighing, takers, local)
        ways: list[Way] = []
        known: dict[int, Picked | None] = {}
        for decoder in decoders:
            givers = roster.givers(decoder.slot) & filling
            if givers not in known:
                known[givers] = self._filling.choose(weighing, roster.prefill_groups, givers, now)
            given = known[givers]
            if given is not None:
                ways.append(Way(decoder, given))
        return ways

    def _decided(self, way: Way, tokens: int, evidence: RouteEvidence) -> Decision:
        decode, prefill = way
        facts = self._roster.facts
        decoder = facts[decode.slot]
        assert decoder is not None, "a slot without a worker"
        cached_tokens = sum((prefill or decode).cached)
        self._routed += 1
        self._tokens += tokens
        self._cached_tokens += cached_tokens
        reasons = decode.reasons
        giver: WorkerId | None = None
        if prefill is not None:
            filler = facts[prefill.slot]
            assert filler is not None, "a slot without a worker"
            giver = filler.card.worker_id
            reasons += prefill.reasons
            self._remote += 1
        elif decoder.card.role is Role.DECODE:
            reasons = (*reasons, evidence.why_alone())
        return Decision(
            decoder.card.worker_id, giver, reasons, tokens - cached_tokens, cached_tokens, evidence
        )

    def stats(self) -> RouterStats:
        """Return the counts."""
        index, seats = self._caches.index, self._roster.seats
        return RouterStats(
            workers=len(seats),
            index_blocks=index.blocks,
            index_limit=index.limit,
            worker_blocks={worker: seat.owner.blocks for worker, seat in seats.items()},
            predicted=self._caches.predictions.names,
            events_total=index.events_total,
            gaps_total=self._caches.gaps_total,
            forgotten_blocks_total=index.forgotten_total,
            routed_total=self._routed,
            routed_remote_total=self._remote,
            routed_tokens_total=self._tokens,
            routed_cached_tokens_total=self._cached_tokens,
        )

    # Other frontends -----------------------------------------------------------------------------------

    def drain_notes(self) -> list[RouteNote]:
        """Return and forget what other frontends should be told since the last call."""
        notes = list(self._notes)
        self._notes.clear()
        return notes

    def peer_said(self, peer: str, notes: list[RouteNote], now: float) -> None:
        """Another frontend told what it did."""
        for note in notes:
            seat = self._roster.seats.get(note.worker)
            if seat is None:
                continue
            if isinstance(note, PredictedNote):
                self._caches.predict(seat.owner, note.names, now)
                continue
            if isinstance(note, SentNote):
                seat.load.sent((peer, note.request_id), note.prefill_tokens, now, note.tokens)
            else:
                seat.load.ended((peer, note.request_id))
            self._roster.changed(seat)

    def peer_gone(self, peer: str) -> None:
        """Another frontend is gone, and what it had in flight with it."""
        for seat in self._roster.seats.values():
            seat.load.sender_gone(peer)
            self._roster.changed(seat)
