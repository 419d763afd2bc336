"""What this frontend counts, and how Prometheus sees it.

Exists so that the token path adds up plain numbers: nothing here locks, allocates labels or formats until
somebody scrapes. It must not know HTTP or where the numbers come from.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from tokenmill.serve.frontend.worker_link import WorkerLink

SECONDS_BOUNDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
ITL_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)


class Histogram:
    """Counts of seconds by upper bound, not cumulative; the last is beyond all bounds."""

    __slots__ = ("bounds", "counts", "sum_s")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum_s = 0.0

    def observe(self, value_s: float) -> None:
        """Add one."""
        self.counts[bisect_left(self.bounds, value_s)] += 1
        self.sum_s += value_s

    def buckets(self) -> list[tuple[str, float]]:
        """Return Prometheus' cumulative buckets."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


class FrontendMetrics(Collector):
    """All counts of one frontend: its answers', and what is added for each model."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self._models: list[ModelMetrics] = []
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    @property
    def in_flight(self) -> int:
        """Requests being generated, of all models."""
        return sum([model.in_flight for model in self._models])

    def add(self, collector: Collector) -> None:
        """Show what ``collector`` gives, too."""
        self._registry.register(collector)

    def add_models(self, collectors: Mapping[str, Sequence[Collector]]) -> None:
        """Show what each model's collectors give, by the model's name where there are several."""
        for each in collectors.values():
            self._models += [one for one in each if isinstance(one, ModelMetrics)]
        if len(collectors) == 1:
            for collector in next(iter(collectors.values())):
                self.add(collector)
        else:
            self.add(ByModel(collectors))

    def request_ended(self, endpoint: str, status: str) -> None:
        """Count an answer by endpoint and HTTP status; a stream counts when it begins."""
        self.requests[endpoint, status] += 1

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        text: bytes = generate_latest(self._registry)
        return text

    def collect(self) -> Iterable[Metric]:
        """Prometheus: give all metrics."""
        requests = CounterMetricFamily(
            "tokenmill_requests", "Requests answered.", labels=["endpoint", "status"]
        )
        for labels, count in self.requests.items():
            requests.add_metric(labels, count)
        yield requests


class ByModel(Collector):
    """The same metrics of several models, each told apart by the label ``model``."""

    def __init__(self, collectors: Mapping[str, Sequence[Collector]]) -> None:
        self._collectors = collectors

    def collect(self) -> Iterable[Metric]:
        """Prometheus: give all metrics."""
        families: dict[str, Metric] = {}
        for model, collectors in self._collectors.items():
            for metric in (each for collector in collectors for each in collector.collect()):
                family = families.setdefault(
                    metric.name, Metric(metric.name, metric.documentation, metric.type)
                )
                family.samples += [
                    sample._replace(labels={"model": model, **sample.labels}) for sample in metric.samples
                ]
        return families.values()


class ModelMetrics(Collector):
    """What is counted for one model. ``links`` gives the workers whose load is shown."""

    def __init__(self, links: Callable[[], Iterable[WorkerLink]]) -> None:
        self._links = links
        self.generations: Counter[tuple[str, str]] = Counter()
        """By endpoint and outcome; "499" is a client that left."""
        self.in_flight = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.output_tokens = 0
        self.cost = 0.0
        """What its tokens cost, as far as its workers' servers charge for them and told how many."""
        self.ttft = Histogram(SECONDS_BOUNDS)
        self.itl = Histogram(ITL_BOUNDS)
        self.e2e = Histogram(SECONDS_BOUNDS)

    def collect(self) -> Iterable[Metric]:
        """Prometheus: give all metrics."""
        generations = CounterMetricFamily(
            "tokenmill_generations", "Generations by how they ended.", labels=["endpoint", "status"]
        )
        for labels, count in self.generations.items():
            generations.add_metric(labels, count)
        yield generations
        yield GaugeMetricFamily("tokenmill_requests_in_flight", "Requests being generated.", self.in_flight)
        yield CounterMetricFamily("tokenmill_prompt_tokens", "Prompt tokens read.", self.prompt_tokens)
        yield CounterMetricFamily(
            "tokenmill_cached_tokens", "Prompt tokens found in a prefix cache.", self.cached_tokens
        )
        yield CounterMetricFamily("tokenmill_output_tokens", "Tokens generated.", self.output_tokens)
        yield CounterMetricFamily("tokenmill_cost", "Price of tokens that servers of others made.", self.cost)
        for name, text, histogram in (
            ("tokenmill_time_to_first_token_seconds", "From the request to its first token.", self.ttft),
            ("tokenmill_inter_token_latency_seconds", "Between two deliveries of a sequence.", self.itl),
            ("tokenmill_request_seconds", "From the request to its end.", self.e2e),
        ):
            yield HistogramMetricFamily(name, text, histogram.buckets(), histogram.sum_s)
        yield from self._workers()

    def _workers(self) -> Iterable[Metric]:
        labels = ["worker", "role", "state"]
        gauges = {
            name: GaugeMetricFamily(f"tokenmill_worker_{name}", text, labels=labels)
            for name, text in (
                ("running", "Sequences in the last step."),
                ("waiting", "Sequences in the queue."),
                ("waiting_prefill_tokens", "Prompt tokens in the queue."),
                ("kv_blocks_used", "KV blocks held."),
                ("kv_blocks_total", "KV blocks there are."),
                ("streams", "Streams of this frontend."),
                ("circuit", "0: it lets requests through, 1: it tries one, 2: its server keeps failing."),
            )
        }
        for link in self._links():
            values = (link.card.worker_id, link.card.role.value, link.state)
            for name, gauge in gauges.items():
                amount = link.open_streams if name == "streams" else getattr(link.metrics, name)
                gauge.add_metric(values, amount)
        return (*gauges.values(), self._prices())

    def _prices(self) -> Metric:
        prices = GaugeMetricFamily(
            "tokenmill_worker_price_per_million_tokens",
            "What a million tokens cost there.",
            labels=["worker", "kind"],
        )
        for link in self._links():
            if link.card.prices is not None:
                for kind, price in msgspec.structs.asdict(link.card.prices).items():
                    prices.add_metric((link.card.worker_id, kind), price)
        return prices
