"""What ``trtllm-serve`` tells of its load to the words of all engines. No I/O.

``/metrics`` gives the iterations since it was last read, as JSON, and only where ``enable_iter_perf_stats``
is on; where ``return_perf_metrics`` is on too the server reads them itself and tells them at
``/prometheus/metrics``. Block counts are told as totals; what a server does not tell stays as it was.
"""

from __future__ import annotations

import re

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.serve.engines.remote.gauges import EngineGauges

_LINE = re.compile(r"^(trtllm_[a-z0-9_]+)(?:\{[^}]*\})? ([-+0-9.eE]+)", re.MULTILINE)


class _Blocks(msgspec.Struct, rename="camel", frozen=True):
    """``kvCacheStats``."""

    max_num_blocks: int = 0
    used_num_blocks: int = 0
    tokens_per_block: int = 0
    reused_blocks: int = 0
    missed_blocks: int = 0


class _Batch(msgspec.Struct, rename="camel", frozen=True):
    """``inflightBatchingStats``."""

    num_ctx_tokens: int = 0
    num_gen_requests: int = 0
    num_paused_requests: int = 0


class _Iteration(msgspec.Struct, rename="camel", frozen=True):
    """A row of ``/metrics``: one iteration, of one attention data-parallel rank where there are several."""

    iter: int = 0
    attention_dp_rank: int | None = None
    num_active_requests: int = 0
    num_queued_requests: int = 0
    kv_cache_stats: _Blocks | None = None
    inflight_batching_stats: _Batch | None = None


_decode = msgspec.json.Decoder(list[_Iteration]).decode


class IterationStats:
    """Gathers readings of ``/metrics``. One row a rank is kept."""

    def __init__(self) -> None:
        self._last: dict[int, _Iteration] = {}
        self._prompt_tokens = 0
        self._paused = 0

    def read(self, payload: bytes) -> bool:
        """Take an answer; returns whether it told anything. Raises ProtocolError."""
        try:
            rows = _decode(payload)
        except msgspec.DecodeError as error:
            raise ProtocolError(f"/metrics cannot be read: {error}") from error
        for row in rows:
            self._last[row.attention_dp_rank or 0] = row
            if row.inflight_batching_stats is not None:
                self._prompt_tokens += row.inflight_batching_stats.num_ctx_tokens
                self._paused += row.inflight_batching_stats.num_paused_requests
        return bool(rows)

    def count_from_here(self) -> None:
        """What was computed so far was not for frontends."""
        self._prompt_tokens = self._paused = 0

    def gauges(self) -> EngineGauges:
        """Return the load after the last iteration, summed over ranks."""
        rows = list(self._last.values())
        blocks = [row.kv_cache_stats for row in rows if row.kv_cache_stats is not None]
        total = sum(entry.max_num_blocks for entry in blocks)
        size = blocks[0].tokens_per_block if blocks else 0
        hits = size * sum(entry.reused_blocks for entry in blocks)
        return EngineGauges(
            running=sum(row.num_active_requests for row in rows),
            waiting=sum(row.num_queued_requests for row in rows),
            kv_used=sum(entry.used_num_blocks for entry in blocks) / total if total else 0.0,
            prefix_hit_tokens=hits,
            prefix_query_tokens=hits + size * sum(entry.missed_blocks for entry in blocks),
            prompt_tokens=self._prompt_tokens + hits,
            preemptions=self._paused,
            kv_blocks=total,
            block_tokens=size,
        )


def read_prometheus(text: str) -> EngineGauges | None:
    """Return the gauges in a ``/prometheus/metrics`` answer; None: it is no such answer."""
    sums: dict[str, float] = {}
    for name, value in _LINE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    if not sums:
        return None

    def total(name: str) -> int:
        return int(sums.get(f"trtllm_{name}", 0.0))

    size = total("kv_cache_tokens_per_block")
    hits = size * total("kv_cache_reused_blocks_total")
    return EngineGauges(
        running=total("num_requests_running"),
        waiting=total("num_requests_waiting"),
        kv_used=sums.get("trtllm_kv_cache_utilization", 0.0),
        prefix_hit_tokens=hits,
        prefix_query_tokens=hits + size * total("kv_cache_missed_blocks_total"),
        kv_blocks=total("kv_cache_max_blocks"),
        block_tokens=size,
    )
