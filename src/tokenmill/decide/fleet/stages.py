"""How a group of equal workers does at a rate: first tokens, time between tokens, batches, memory.

Exists as the one place where step times, queues and memory meet; placement only searches over it. It must
not know prices, GPUs' names or other groups. Times in milliseconds, rates in requests a millisecond.

A worker that decodes may compute a share of its prompts itself (1: aggregated; 0: all come from prefill
workers). A prompt then goes through steps of ``chunk_tokens`` that decode as well. A request's time between
tokens is the mean over its tokens, as clients measure it: its decode steps, plus what the prompts computed
meanwhile add. Their number is random, so that the sum is a busy period begun by the request's own steps
(Takacs 1962): mean V/(1-r), variance V*lambda*E[x^2]/(1-r)^3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from tokenmill.decide.fleet.first_tokens import first_token, prompts_of
from tokenmill.decide.fleet.queueing import Crowd, FirstToken, crowd, normal_beyond, standard_score
from tokenmill.decide.fleet.replica import Replica
from tokenmill.decide.fleet.workload import Workload

_ROUNDS = 4

_ALL = 0.99
"""Prompts never take more of a lane's time."""


class PrefillPoint(NamedTuple):
    """Prefill workers at a rate. ``busy``: the share of time in which they compute."""

    rate: float
    first_token: FirstToken
    busy: float


class PrefillGroup(msgspec.Struct, frozen=True, kw_only=True):
    """``count`` equal workers that compute prompts and hand them over. ``handoff_ms``: how long the receiver
    takes to fetch one."""

    replica: Replica
    count: int
    workload: Workload
    chunk_tokens: float
    handoff_ms: float = 0.0

    @property
    def most_rate(self) -> float:
        """Above this they cannot keep up."""
        return (
            self.count
            * self.replica.lanes
            / prompts_of(self.replica, self.workload, self.chunk_tokens, 0, 0).mean_ms
        )

    def at(self, rate: float) -> PrefillPoint | None:
        """Return how they do; None when they cannot keep up."""
        first = first_token(self.replica, self.count, self.workload, self.chunk_tokens, rate)
        return None if first is None else PrefillPoint(rate, first, rate / self.most_rate)

    def failures(self, rate: float, ttft_ms: float, miss: float) -> Iterator[str]:
        """Yield what does not hold at ``rate``: "rate", "ttft", "kv memory"."""
        point = self.at(rate)
        if point is None:
            yield "rate"
            return
        if point.first_token.beyond(ttft_ms) > miss:
            yield "ttft"
        own_ms = point.first_token.own_ms()
        held = rate / (self.count * self.replica.lanes) * (own_ms + self.handoff_ms)
        prompts = held + standard_score(miss) * math.sqrt(held)
        longest = max(shape.prompt_tokens for shape in self.workload.shapes)
        if max(longest, prompts * self.workload.prompt_tokens) > self.replica.lane_kv_tokens:
            yield "kv memory"


class DecodePoint(NamedTuple):
    """Decoding workers at a rate. ``batch``: sequences in a lane's step, on average; ``crowd``: on all
    together. ``itl_ms``, ``itl_sd_ms``: mean and spread over requests of a request's mean time between
    tokens. ``kv_tokens``, ``kv_sd_tokens``: held in a lane. ``busy``: the share of a lane's time that
    prompts take. ``first_token``: of prompts computed here; None: there are none."""

    rate: float
    batch: float
    crowd: Crowd
    itl_ms: float
    itl_sd_ms: float
    kv_tokens: float
    kv_sd_tokens: float
    busy: float
    first_token: FirstToken | None

    def itl_quantile(self, miss: float) -> float:
        """Return the time between tokens that a share ``miss`` of requests exceeds, ms."""
        return self.itl_ms + standard_score(miss) * self.itl_sd_ms


class _Flow(NamedTuple):
    """A lane at a steady batch: requests a millisecond, a step without prompts, what prompts add by shape
    and in all (as a share of the time), the time between tokens, and the tokens of other prompts that one
    meets in its step."""

    lane_rate: float
    step_ms: float
    excess: list[tuple[float, float]]
    added: float
    itl_ms: float
    others: float


class DecodeGroup(msgspec.Struct, frozen=True, kw_only=True):
    """``count`` equal workers that decode and compute ``local_share`` of the prompts themselves, in steps of
    ``chunk_tokens``; the others are fetched in ``handoff_ms``."""

    replica: Replica
    count: int
    workload: Workload
    chunk_tokens: float = 2048
    local_share: float = 0.0
    handoff_ms: float = 0.0

    def at_batch(self, batch: float) -> DecodePoint | None:
        """Return how they do with ``batch`` sequences in a lane's step on average; None when prompts alone
        are more than they can compute."""
        load = self.workload
        lanes = self.count * self.replica.lanes
        flow = self._flow(batch)
        first = self._first_token(batch, flow.lane_rate * lanes) if self.local_share else None
        if self.local_share and first is None:
            return None
        people, per_sequence_ms = self._crowd(batch, flow)
        lane_sd = math.sqrt(people.variance) / lanes
        square = sum(share * each * each for share, each in flow.excess)
        interference = flow.lane_rate * square * flow.step_ms / (load.decode_steps * (1 - flow.added) ** 3)
        prompts = flow.lane_rate * self.local_share * (first.own_ms() if first else 0.0)
        context = load.decode_context
        spread = (
            batch * load.decode_context_sd**2 + (lane_sd * context) ** 2 + prompts * load.prompt_tokens**2
        )
        return DecodePoint(
            rate=flow.lane_rate * lanes,
            batch=batch,
            crowd=people,
            itl_ms=flow.itl_ms + self._joining_ms(flow.itl_ms),
            itl_sd_ms=math.sqrt(interference + (per_sequence_ms * lane_sd) ** 2),
            kv_tokens=batch * context + prompts * load.prompt_tokens,
            kv_sd_tokens=math.sqrt(spread),
            busy=flow.added,
            first_token=first,
        )

    def _flow(self, batch: float) -> _Flow:
        """Find the rate that keeps ``batch`` sequences in a lane. How much a prompt adds depends on how
        many share its step, and so on the rate again: a few rounds settle it."""
        load, step_ms = self.workload, self._step_ms(batch)
        others, rounds = 0.0, 1
        if self.local_share and any(shape.new_tokens < self.chunk_tokens for shape in load.shapes):
            rounds = _ROUNDS
        for _ in range(rounds):
            excess = self._excess_ms(batch, step_ms, others)
            mean_excess = sum(share * each for share, each in excess)
            lane_rate = batch / (load.decode_steps * step_ms + batch * mean_excess)
            added = lane_rate * mean_excess
            itl_ms = step_ms / (1 - added)
            others = (others + lane_rate * self.local_share * itl_ms * load.new_tokens) / 2
        return _Flow(lane_rate, step_ms, excess, added, itl_ms, others)

    def _first_token(self, batch: float, rate: float) -> FirstToken | None:
        return first_token(
            self.replica,
            self.count,
            self.workload,
            self.chunk_tokens,
            rate * self.local_share,
            sequences=batch,
            decode_context=batch * self.workload.decode_context,
        )

    def _crowd(self, batch: float, flow: _Flow) -> tuple[Crowd, float]:
        """Return how many sequences there are, and what one more adds to the time between tokens, ms."""
        load = self.workload
        delta = max(0.5, batch * 0.02)
        more_ms = self._step_ms(batch + delta)
        excess = self._excess_ms(batch + delta, more_ms, flow.others)
        added = min(_ALL, flow.lane_rate * sum(share * each for share, each in excess))
        more_itl_ms = more_ms / (1 - added)
        # Sequences end as fast as they come (``lane_rate``); with more of them, so much faster.
        drained = (batch + delta) / (load.decode_steps * more_itl_ms)
        slope = max((drained - flow.lane_rate) / delta, 1e-9)
        lanes = self.count * self.replica.lanes
        people = crowd(batch * lanes, flow.lane_rate * lanes, slope, load.burstiness)
        return people, max(0.0, more_itl_ms - flow.itl_ms) / delta

    def failures(self, batch: float, ttft_ms: float, itl_ms: float, miss: float) -> Iterator[str]:
        """Yield what does not hold at ``batch``: "rate", "ttft", "itl", "kv memory", "batch limit"."""
        point = self.at_batch(batch)
        if point is None:
            yield "rate"
            return
        if point.first_token is not None and point.first_token.beyond(ttft_ms) > miss:
            yield "ttft"
        if normal_beyond(itl_ms, point.itl_ms, point.itl_sd_ms) > miss:
            yield "itl"
        score = standard_score(miss)
        held = max(self.workload.longest, point.kv_tokens + score * point.kv_sd_tokens)
        if held > self.replica.lane_kv_tokens:
            yield "kv memory"
        lanes = self.count * self.replica.lanes
        if batch + score * math.sqrt(point.crowd.variance) / lanes > self.replica.max_sequences:
            yield "batch limit"

    def at(self, rate: float) -> DecodePoint | None:
        """Return how they do at ``rate``; None when they cannot keep up."""
        low, high = 0.0, float(self.replica.max_sequences)
        point = self.at_batch(high)
        if point is not None and point.rate < rate:
            return None
        for _ in range(40):
            middle = (low + high) / 2
            point = self.at_batch(middle)
            if point is None or point.rate > rate:
                high = middle
            else:
                low = middle
            if high - low <= 1e-4 * high:
                break
        return self.at_batch(max(low, 1e-9))

    def batch_within(self, itl_ms: float) -> int:
        """Return the largest batch of one replica whose steps alone take at most ``itl_ms``, within
        memory."""
        most = min(self.replica.max_sequences, self.replica.lane_kv_tokens / self.workload.decode_context)
        low, high = 1, max(1, int(most))
        while low < high:
            middle = (low + high + 1) // 2
            if self._step_ms(middle) <= itl_ms:
                low = middle
            else:
                high = middle - 1
        return low * self.replica.lanes

    def _step_ms(self, batch: float) -> float:
        return self.replica.step_ms(0, 0, batch, batch * self.workload.decode_context)

    def _excess_ms(self, batch: float, step_ms: float, others: float) -> list[tuple[float, float]]:
        """By shape: its share of all requests, and what one of its prompts adds to the steps it is part of,
        together with ``others`` tokens of other prompts: its part by tokens."""
        if not self.local_share:
            return []
        excess = []
        decode_context = batch * self.workload.decode_context
        for shape in self.workload.shapes:
            own = min(self.chunk_tokens, shape.new_tokens)
            tokens = min(self.chunk_tokens, own + others)
            step = self.replica.step_ms(tokens, tokens * shape.mean_context, batch, decode_context)
            added = max(0.0, step - step_ms) * shape.new_tokens / tokens
            excess.append((shape.share * self.local_share, added))
        return excess

    def _joining_ms(self, itl_ms: float) -> float:
        """The second token of a prompt from elsewhere waits for its cache and for the running step's end:
        spread over the request's tokens."""
        wait_ms = self.handoff_ms + itl_ms / 2
        shares = sum(shape.share / shape.decode_steps for shape in self.workload.shapes)
        return (1 - self.local_share) * wait_ms * shares
