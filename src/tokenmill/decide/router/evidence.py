"""What a decision was made of, for whoever asks later.

Exists so that a decision costs a few references, and the words are made only when somebody reads them: facts
are never changed, so that they still say what was known then. It must not know how anything was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.decide.router.cost import CostWeights, cost_terms
from tokenmill.decide.router.masks import slots_of
from tokenmill.decide.router.paths import LOCAL, Path
from tokenmill.decide.router.roster import WorkerFacts
from tokenmill.decide.router.types import Weighed, WeighedPath
from tokenmill.decide.router.ways import Way
from tokenmill.decide.router.weighing import NOTHING, Known, Seen, best_known


class RouteEvidence:
    """``types.Evidence`` of one decision. ``facts``: of all workers by slot, ``allowed`` being candidates."""

    __slots__ = ("_allowed", "_facts", "_paths", "_seen", "_tokens", "_way", "_weights")

    def __init__(
        self,
        tokens: int,
        facts: tuple[WorkerFacts | None, ...],
        allowed: int,
        seen: Sequence[Seen | Known],
        weights: CostWeights,
        way: Way,
        paths: Sequence[Path],
    ) -> None:
        self._tokens = tokens
        self._facts = facts
        self._allowed = allowed
        self._seen = seen
        self._weights = weights
        self._way = way
        self._paths = paths

    def explain(self) -> list[Weighed]:
        """See ``types.Evidence``."""
        found = best_known(self._seen, self._allowed)
        nothing = Known(0, NOTHING, True)
        weighed = [self._weigh(slot, found.get(slot, nothing)) for slot in slots_of(self._allowed)]
        return sorted(weighed, key=lambda each: (each.role, each.terms["total_ms"], each.worker))

    def paths(self) -> list[WeighedPath]:
        """See ``types.Evidence``."""
        told = []
        for path in self._paths:
            way = path.key
            assert isinstance(way, Way), "ways.Judge names paths by their ways"
            prefill = self._fact(way.prefill.slot).card.worker_id if way.prefill else None
            told.append(
                WeighedPath(
                    kind=path.kind,
                    decode_worker=self._fact(way.decode.slot).card.worker_id,
                    prefill_worker=prefill,
                    terms={**path.terms, "total_ms": path.total_ms},
                    chosen=way is self._way,
                )
            )
        return told

    def why_alone(self) -> str:
        """Return why a decode worker does the prefill itself."""
        others = [path.total_ms for path in self._paths if path.kind != LOCAL]
        if not others:
            return "no prefill worker can hand over to it: it does the prefill itself"
        alone_ms = next(path.total_ms for path in self._paths if path.key is self._way)
        return f"it does the prefill itself: {alone_ms:.1f} ms against {min(others):.1f} ms by a handoff"

    def _weigh(self, slot: int, known: Known) -> Weighed:
        facts = self._fact(slot)
        terms = cost_terms(
            facts.load, facts.speed, self._tokens, known.cached, self._weights, facts.sequence_weight
        )
        return Weighed(
            worker=facts.card.worker_id,
            role=facts.card.role,
            cached=known.cached,
            cached_exact=known.exact,
            load=facts.load._asdict(),
            terms=terms._asdict(),
            chosen=self._chosen(slot),
        )

    def _chosen(self, slot: int) -> str:
        decode, prefill = self._way
        if prefill is not None and slot == prefill.slot:
            return "prefill"
        if slot != decode.slot:
            return ""
        return "both" if prefill is None else "decode"

    def _fact(self, slot: int) -> WorkerFacts:
        facts = self._facts[slot]
        assert facts is not None, "a slot without a worker"
        return facts
