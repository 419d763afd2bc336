"""What the router knows and what frontends tell each other, as Prometheus sees it.

Exists so that ``metrics`` knows neither. Nothing here is worked out until somebody scrapes.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tokenmill.protocol.frontends import FrontendId
from tokenmill.serve.frontend.peers import Peers
from tokenmill.serve.frontend.workers import WorkerSet


class PeerMetrics(Collector):
    """Of one frontend; ``peers`` None: it keeps to itself."""

    def __init__(self, peers: Peers | None, frontend_id: FrontendId) -> None:
        self._peers = peers
        self._frontend_id = frontend_id

    def collect(self) -> Iterable[Metric]:
        """Prometheus: give all metrics."""
        yield InfoMetricFamily("tokenmill_frontend", "Who answers.", {"frontend": self._frontend_id})
        if self._peers is not None:
            yield from _of_peers(self._peers)


class RoutingMetrics(Collector):
    """Of one model's workers."""

    def __init__(self, workers: WorkerSet) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        """Prometheus: give all metrics."""
        stats = self._workers.router.stats()
        for name, text, gauge in (
            ("index_blocks", "Blocks known to be cached somewhere.", stats.index_blocks),
            ("index_limit_blocks", "Most blocks in the index.", stats.index_limit),
            ("predicted_blocks", "Blocks taken to be cached where a prompt went.", stats.predicted),
        ):
            yield GaugeMetricFamily(f"tokenmill_router_{name}", text, gauge)
        for name, text, total in (
            ("kv_events", "Events of workers' caches applied.", stats.events_total),
            ("kv_gaps", "Gaps seen in workers' events.", stats.gaps_total),
            ("forgotten_blocks", "Blocks dropped because the index was full.", stats.forgotten_blocks_total),
            ("routed", "Requests routed.", stats.routed_total),
            ("routed_tokens", "Prompt tokens of requests routed.", stats.routed_tokens_total),
            ("routed_cached_tokens", "Those predicted to be cached.", stats.routed_cached_tokens_total),
        ):
            yield CounterMetricFamily(f"tokenmill_router_{name}", text, total)
        yield from self._by_worker(stats.worker_blocks)

    def _by_worker(self, blocks: dict[str, int]) -> Iterable[Metric]:
        cached = GaugeMetricFamily(
            "tokenmill_router_worker_blocks", "Blocks known to be cached at a worker.", labels=["worker"]
        )
        for worker, count in blocks.items():
            cached.add_metric([worker], count)
        resubscribed = CounterMetricFamily(
            "tokenmill_kv_resubscribed", "Times a worker's cache was asked for anew.", labels=["worker"]
        )
        for link in self._workers.links():
            resubscribed.add_metric([link.card.worker_id], link.kv.resubscribed)
        return cached, resubscribed


def _of_peers(peers: Peers) -> Iterable[Metric]:
    counts = peers.counts
    yield GaugeMetricFamily("tokenmill_peers_connected", "Other frontends that are heard.", counts.connected)
    for name, text, total in (
        ("sent", "Notes sent to other frontends.", counts.notes_sent),
        ("received", "Notes of other frontends received.", counts.notes_received),
        ("dropped", "Notes of other frontends that were lost on a way too slow.", counts.notes_dropped),
    ):
        yield CounterMetricFamily(f"tokenmill_peer_notes_{name}", text, total)
    yield HistogramMetricFamily(
        "tokenmill_peer_lag_seconds",
        "From another frontend's routing until this one knew.",
        counts.lag.buckets(),
        counts.lag.sum_s,
    )
