"""SGLang's Prometheus text to the load that routers and planners read. No I/O.

Names as of SGLang 0.5.23, with those of older servers behind them. Several ranks of one replica may tell the
same: the largest counts, and data-parallel ranks are added up. What a server does not tell stays 0.
"""

from __future__ import annotations

import math
import re

from tokenmill.serve.engines.remote.gauges import EngineGauges

_LINE = re.compile(r"^(sglang:[a-zA-Z0-9_:]*)(?:\{(.*)\})? ([-+0-9.eEinfaN]+)", re.MULTILINE)
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

_WAITING = (
    "sglang:num_queue_reqs",
    "sglang:num_prefill_bootstrap_queue_reqs",
    "sglang:num_decode_prealloc_queue_reqs",
    "sglang:num_decode_transfer_queue_reqs",
)
_RUNNING = ("sglang:num_running_reqs", "sglang:num_prefill_inflight_queue_reqs")
_STEPS = "sglang:cuda_graph_passes_total"
"""Forward passes, with a CUDA graph or without."""

_CACHED = "sglang:cached_tokens_total"
_RANK_LABELS = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})

_Series = dict[tuple[str, str], dict[str, float]]
"""By name and mode, by data-parallel rank (and what else is counted apart): the largest value of all
ranks."""


def read_metrics(text: str) -> EngineGauges:
    """Return the gauges in a ``/metrics`` answer."""
    series = _read(text)

    def total(name: str, mode: str = "") -> float:
        return sum(series.get((name, mode), {}).values())

    realtime = "sglang:realtime_tokens_total"
    computed, cached = total(realtime, "prefill_compute"), total(realtime, "prefill_cache")
    prompt = computed + cached
    if not any((realtime, mode) in series for mode in ("prefill_compute", "prefill_cache", "decode")):
        prompt = total("sglang:prompt_tokens_total")
        cached = sum(sum(ranks.values()) for (name, _), ranks in series.items() if name == _CACHED)
    usage = series.get(("sglang:token_usage", ""), {})
    return EngineGauges(
        running=int(sum(total(name) for name in _RUNNING)),
        waiting=int(sum(total(name) for name in _WAITING)),
        kv_used=sum(usage.values()) / len(usage) if usage else 0.0,
        prefix_hit_tokens=int(cached),
        prefix_query_tokens=int(prompt),
        prompt_tokens=int(prompt),
        output_tokens=int(total("sglang:generation_tokens_total")),
        preemptions=int(total("sglang:num_retracted_requests_total")),
        ranks=max(1, len(usage)),
        steps=int(sum(sum(ranks.values()) for (name, _), ranks in series.items() if name == _STEPS)),
    )


def _read(text: str) -> _Series:
    series: _Series = {}
    for name, labels, raw in _LINE.findall(text):
        facts = dict(_LABEL.findall(labels))
        try:
            value = float(raw)
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        mode = facts.pop("mode", "") or facts.pop("cache_source", "")
        apart = ",".join(f"{key}={facts[key]}" for key in sorted(facts) if key not in _RANK_LABELS)
        ranks = series.setdefault((name, mode), {})
        ranks[apart] = max(ranks.get(apart, value), value)
    return series
