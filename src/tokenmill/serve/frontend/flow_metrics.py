"""Counts of what happens to sequences between arrival and end: stages and migrations.

Exists so that ``metrics`` needs to know nothing of a sequence's life. It must not know HTTP or workers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenmill.serve.frontend.metrics import SECONDS_BOUNDS, Histogram
from tokenmill.serve.frontend.migration import Migration, NotMoved

_ROUTE_BOUNDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.1)


class FlowMetrics(Collector):
    """``timeline.StageTimes`` of all sequences. Plain numbers until somebody scrapes."""

    def __init__(self) -> None:
        self.migrations: Counter[tuple[str, ...]] = Counter()
        """By reason and phase."""
        self.replayed_tokens = 0
        self.handoffs_lost: Counter[str] = Counter()
        """By reason; workers know few of them."""
        self.failures: Counter[str] = Counter()
        """By why a sequence that lost its worker was not continued."""
        self.route = Histogram(_ROUTE_BOUNDS)
        self.prefill = Histogram(SECONDS_BOUNDS)
        self.transfer = Histogram(SECONDS_BOUNDS)

    def routed(self, took_s: float) -> None:
        """See ``StageTimes``."""
        self.route.observe(took_s)

    def prefilled(self, took_s: float) -> None:
        """See ``StageTimes``."""
        self.prefill.observe(took_s)

    def transferred(self, took_s: float) -> None:
        """See ``StageTimes``."""
        self.transfer.observe(took_s)

    def handoff_lost(self, reason: str) -> None:
        """See ``StageTimes``."""
        self.handoffs_lost[reason] += 1

    def moved(self, migration: Migration) -> None:
        """See ``StageTimes``."""
        self.migrations[migration.reason.value, migration.phase.value] += 1
        self.replayed_tokens += migration.replayed_tokens

    def not_moved(self, why: NotMoved) -> None:
        """See ``StageTimes``."""
        self.failures[why.value] += 1

    def collect(self) -> Iterable[Metric]:
        """Prometheus: give all metrics."""
        yield _counted(
            "tokenmill_migrations",
            "Sequences that left a worker to go on at another one.",
            ("reason", "phase"),
            self.migrations,
        )
        yield CounterMetricFamily(
            "tokenmill_migration_replayed_tokens",
            "Tokens, prompt and delivered output, that were sent again with migrations.",
            self.replayed_tokens,
        )
        yield _counted(
            "tokenmill_migration_failures",
            "Sequences that lost their worker and could not go on.",
            ("reason",),
            {(reason,): count for reason, count in self.failures.items()},
        )
        yield _counted(
            "tokenmill_handoffs_lost",
            "Prompts that a decode worker computed itself, since the cache did not come.",
            ("reason",),
            {(reason,): count for reason, count in self.handoffs_lost.items()},
        )
        for name, text, histogram in (
            ("tokenmill_route_seconds", "To choose workers for a sequence that need not wait.", self.route),
            ("tokenmill_prefill_seconds", "From sending to a worker to its first token.", self.prefill),
            (
                "tokenmill_transfer_gap_seconds",
                "From the prefill worker's token to the decode worker's first one.",
                self.transfer,
            ),
        ):
            yield HistogramMetricFamily(name, text, histogram.buckets(), histogram.sum_s)


def _counted(
    name: str, text: str, labels: Sequence[str], counts: Mapping[tuple[str, ...], int]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
