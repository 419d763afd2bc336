"""vLLM's Prometheus text to the load that routers and planners read. No I/O.

Names as of vLLM 0.32.0, with those of older servers beside them. Counters are summed over data-parallel ranks
and models; what a server does not tell stays 0.
"""

from __future__ import annotations

import re

from tokenmill.serve.engines.remote.gauges import EngineGauges

_KV_USED = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_CACHE = "vllm:cache_config_info"
_RUNNING = "vllm:num_requests_running"
_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
_COUNTED = (
    "vllm:num_requests_waiting",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:num_preemptions_total",
    "vllm:iteration_tokens_total_count",
    "vllm:external_prefix_cache_hits_total",
)

_NAMES = "|".join((*_KV_USED, _CACHE, _RUNNING, *_HITS, *_QUERIES, *_COUNTED))
_LINE = re.compile(rf"^({_NAMES})(?:\{{(.*)\}})? ([-+0-9.eEinfaN]+)", re.MULTILINE)
"""Only what is read: an answer has a thousand other lines, most of them of histograms."""

_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


def read_metrics(text: str) -> EngineGauges:
    """Return the gauges in a ``/metrics`` answer."""
    sums: dict[str, float] = {}
    shares: list[float] = []
    blocks, block_tokens = 0, 0
    ranks: set[str] = set()
    for name, labels, value in _LINE.findall(text):
        if name == _CACHE:
            facts = dict(_LABEL.findall(labels))
            blocks += _whole(facts.get("num_gpu_blocks"))
            block_tokens = _whole(facts.get("block_size"))
        elif name in _KV_USED:
            shares.append(float(value))
        else:
            sums[name] = sums.get(name, 0.0) + float(value)
            if name == _RUNNING:
                ranks.add(dict(_LABEL.findall(labels)).get("engine", ""))

    def total(*names: str) -> int:
        return int(next((sums[name] for name in names if name in sums), 0.0))

    return EngineGauges(
        running=total(_RUNNING),
        waiting=total("vllm:num_requests_waiting"),
        kv_used=sum(shares) / len(shares) if shares else 0.0,
        prefix_hit_tokens=total(*_HITS),
        prefix_query_tokens=total(*_QUERIES),
        prompt_tokens=total("vllm:prompt_tokens_total"),
        output_tokens=total("vllm:generation_tokens_total"),
        preemptions=total("vllm:num_preemptions_total"),
        kv_blocks=blocks,
        block_tokens=block_tokens,
        steps=total("vllm:iteration_tokens_total_count"),
        fetched_tokens=total("vllm:external_prefix_cache_hits_total"),
        ranks=len(ranks) or 1,
    )


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0
