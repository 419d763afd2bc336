"""What waits at the front door, as Prometheus and ``/health`` see it.

Exists so that the queue adds up plain numbers and nothing is worked out until somebody asks. It must not
change anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenmill.decide.router.admission_words import RefusedFor
from tokenmill.serve.frontend.admission import AdmittingPlant


class AdmissionMetrics(Collector):
    """Of one frontend."""

    def __init__(self, plant: AdmittingPlant) -> None:
        self._plant = plant

    def collect(self) -> Iterable[Metric]:
        """Prometheus: give all metrics."""
        plant = self._plant
        stats = plant.stats()
        for name, text, value in (
            ("queue_sequences", "Sequences that wait for a worker.", stats.queued),
            ("queue_tokens", "Prompt tokens that wait.", stats.queued_tokens),
            ("queue_tenants", "Tenants who wait.", stats.tenants),
            ("busy_workers", "Workers that get nothing new now.", stats.busy_workers),
            ("drain_tokens_per_second", "Measured; 0: not yet.", stats.drain_tokens_per_s or 0.0),
        ):
            yield GaugeMetricFamily(f"tokenmill_admission_{name}", text, value)
        yield CounterMetricFamily(
            "tokenmill_admission_queued", "Sequences that had to wait.", plant.queued_total
        )
        refused = CounterMetricFamily(
            "tokenmill_admission_refused", "Sequences refused in the queue.", labels=["reason"]
        )
        for reason in RefusedFor:
            refused.add_metric([reason.value], plant.refused[reason])
        yield refused
        yield HistogramMetricFamily(
            "tokenmill_admission_wait_seconds",
            "How long sequences waited that were given a worker.",
            plant.waited.buckets(),
            plant.waited.sum_s,
        )


def admission_health(plant: AdmittingPlant) -> dict[str, object]:
    """Return the queue's state for ``/health``."""
    stats = plant.stats()
    return {
        "queued": stats.queued,
        "queued_tokens": stats.queued_tokens,
        "tenants": stats.tenants,
        "busy_workers": stats.busy_workers,
        "open_workers": stats.open_workers,
        "drain_tokens_per_s": stats.drain_tokens_per_s,
        "retry_after_s": stats.retry_after_s,
        "queued_total": plant.queued_total,
        "refused_total": {reason.value: count for reason, count in plant.refused.items()},
    }
