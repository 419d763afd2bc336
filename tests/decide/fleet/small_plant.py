"""A small discrete simulation, step by step, to judge the queueing formulas by: none of their assumptions
is in it.

Workers fill each step's chunk with prompts in order and decode all they have; a request goes where the
least prefill, then the fewest sequences wait. Prompts that come from elsewhere begin at their second token.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from dataclasses import dataclass, field


@dataclass(eq=False)
class Sequence:
    arrived_ms: float
    new: float
    cached: float
    output: int
    local: bool
    computed: float = 0.0
    tokens: int = 0
    first_ms: float = 0.0
    last_ms: float = 0.0

    @property
    def ttft_ms(self):
        return self.first_ms - self.arrived_ms

    @property
    def itl_ms(self):
        begun = self.first_ms if self.local else self.arrived_ms
        return (self.last_ms - begun) / (self.output - 1)


@dataclass(eq=False)
class Worker:
    prompts: deque = field(default_factory=deque)
    decoding: list = field(default_factory=list)
    busy: bool = False
    step: tuple = ()

    def left(self):
        return sum(each.new - each.computed for each in self.prompts)


def run(times, *, rate_per_s, requests, workers, chunk, shape, local=True, decode=True, seed=1, warm=0.1):
    """Return the sequences of a run, without the first ``warm`` share of them. ``shape``: a function of the
    random generator that gives (new, cached, output)."""
    chance = random.Random(seed)
    events, number, now = [], 0, 0.0
    for _ in range(requests):
        now += chance.expovariate(rate_per_s) * 1000
        heapq.heappush(events, (now, number := number + 1, None))
    crew = [Worker() for _ in range(workers)]
    done = []
    while events:
        now, _, worker = heapq.heappop(events)
        if worker is None:
            new, cached, output = shape(chance)
            sequence = Sequence(now, new, cached, output, local)
            worker = min(
                crew, key=lambda each: (each.left() + (each.busy and not each.decoding), len(each.decoding))
            )
            if local:
                worker.prompts.append(sequence)
            else:
                sequence.tokens, sequence.computed = 1, new
                worker.decoding.append(sequence)
        else:
            _end(worker, now, decode, done)
        if not worker.busy and (worker.prompts or worker.decoding):
            heapq.heappush(events, (now + _begin(worker, times, chunk), number := number + 1, worker))
    done.sort(key=lambda each: each.arrived_ms)
    return done[int(len(done) * warm) :]


def _begin(worker, times, chunk):
    room, context, parts = chunk, 0.0, []
    for sequence in worker.prompts:
        length = min(room, sequence.new - sequence.computed)
        if length > 0:
            start = sequence.cached + sequence.computed
            context += length * (start + length / 2)
            parts.append((sequence, length))
            room -= length
    held = sum(each.cached + each.new + each.tokens for each in worker.decoding)
    worker.busy, worker.step = True, (parts, list(worker.decoding))
    return times.mixed_ms(chunk - room, context, len(worker.decoding), held)


def _end(worker, now, decode, done):
    parts, decoded = worker.step
    worker.busy = False
    for sequence in decoded:
        sequence.tokens += 1
        if sequence.tokens == sequence.output:
            sequence.last_ms = now
            worker.decoding.remove(sequence)
            done.append(sequence)
    for sequence, length in parts:
        sequence.computed += length
        if sequence.computed >= sequence.new:
            worker.prompts.remove(sequence)
            sequence.first_ms, sequence.tokens = now, 1
            if decode:
                worker.decoding.append(sequence)
            else:
                done.append(sequence)


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
