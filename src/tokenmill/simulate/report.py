"""What happened to the requests of a run, and the figures made of it.

It must not know how the run came about.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import msgspec

from tokenmill.protocol.ids import RequestId


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One run's result. Times in milliseconds; ``makespan_s`` from the first arrival to the last token.

    ``prefix_hit``: prompt tokens found in a cache at first admission, of all prompt tokens. TTFT: arrival to
    first token. ITL: between two tokens of a request, over all such pairs. TPOT: a request's mean ITL, over
    requests of two or more tokens.
    """

    requests: int
    refused: int
    prefix_hit: float
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_mean_ms: float
    itl_p99_ms: float
    tpot_mean_ms: float
    tpot_p99_ms: float
    makespan_s: float


class Outcome(NamedTuple):
    """What one served request saw, milliseconds. ``tpot_ms``: None for a single token."""

    arrived_s: float
    ttft_ms: float
    tpot_ms: float | None
    whole_ms: float


class _Life:
    __slots__ = ("arrived", "cached_tokens", "first", "last", "prompt_tokens", "tokens")

    def __init__(self, arrived: float, prompt_tokens: int) -> None:
        self.arrived = arrived
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.first = 0.0
        self.last = 0.0
        self.tokens = 0


class Journal:
    """Takes down each request's times, seconds. Grows with the trace: 8 bytes a token, 200 a request."""

    def __init__(self) -> None:
        self._lives: dict[RequestId, _Life] = {}
        self._gaps_s = array("d")
        self._refused: set[RequestId] = set()

    def arrived(self, request_id: RequestId, prompt_tokens: int, now: float) -> None:
        """A request came."""
        self._lives[request_id] = _Life(now, prompt_tokens)

    def token(self, request_id: RequestId, now: float) -> None:
        """A token left the worker."""
        life = self._lives[request_id]
        if life.tokens:
            self._gaps_s.append(now - life.last)
        else:
            life.first = now
        life.tokens += 1
        life.last = now

    def finished(self, request_id: RequestId, cached_tokens: int) -> None:
        """A request's last token has left; ``cached_tokens`` of its prompt were found in the cache."""
        self._lives[request_id].cached_tokens = cached_tokens

    def refused(self, request_id: RequestId) -> None:
        """A worker refused a request, or there was none for it."""
        self._refused.add(request_id)

    def outcomes(self) -> list[Outcome]:
        """Return what each request saw that got a token, in the order of arrival."""
        return [
            Outcome(
                life.arrived,
                (life.first - life.arrived) * 1000,
                (life.last - life.first) * 1000 / (life.tokens - 1) if life.tokens > 1 else None,
                (life.last - life.arrived) * 1000,
            )
            for life in self._lives.values()
            if life.tokens
        ]

    def figures(self) -> Figures:
        """Sum up the run; raises ValueError when no request was served."""
        lives = [life for life in self._lives.values() if life.tokens]
        if not lives:
            raise ValueError("no request was served: there is nothing to report")
        ttft_ms = sorted((life.first - life.arrived) * 1000 for life in lives)
        tpot_ms = sorted((e.last - e.first) * 1000 / (e.tokens - 1) for e in lives if e.tokens > 1) or [0.0]
        gaps_s = sorted(self._gaps_s) or [0.0]
        start = min(life.arrived for life in self._lives.values())
        return Figures(
            requests=len(self._lives),
            refused=len(self._refused),
            prefix_hit=sum(e.cached_tokens for e in lives) / sum(e.prompt_tokens for e in lives),
            ttft_mean_ms=_mean(ttft_ms),
            ttft_p50_ms=quantile(ttft_ms, 0.50),
            ttft_p99_ms=quantile(ttft_ms, 0.99),
            itl_mean_ms=_mean(gaps_s) * 1000,
            itl_p99_ms=quantile(gaps_s, 0.99) * 1000,
            tpot_mean_ms=_mean(tpot_ms),
            tpot_p99_ms=quantile(tpot_ms, 0.99),
            makespan_s=max(life.last for life in lives) - start,
        )


def quantile(ordered: list[float], share: float) -> float:
    """Return the value below which ``share`` of ``ordered`` lies, interpolated between its neighbours."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
