"""The seam between a sweep and what it measures, and the prompts that all probes send."""

from __future__ import annotations

import random
from typing import Protocol

import msgspec

from tokenmill.decide.perf.profile import Method
from tokenmill.operate.profile.points import Point
from tokenmill.operate.profile.runs import Run


class ProbeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe knows of what it measures. ``kv_tokens``, ``max_model_len``: tokens, 0: not known."""

    model: str
    engine: str
    method: Method
    kv_tokens: int = 0
    max_model_len: int = 0
    max_sequences: int = 0


class Probe(Protocol):
    """Something that can be asked for work. One run at a time."""

    async def start(self) -> ProbeFacts:
        """Be ready. Raises ConfigError or TokenmillError. Cancelled: nothing is left open."""
        ...

    async def run(self, point: Point) -> Run:
        """Do a point's work alone. Raises TokenmillError where that fails. Cancelled: requests are ended."""
        ...

    async def close(self) -> None:
        """Let go of everything."""
        ...


class Prompts:
    """Prompts that share nothing with each other, so that no cache helps. ``first`` to ``last``: token
    ids."""

    def __init__(self, first: int, last: int, seed: int) -> None:
        self._ids = range(first, last)
        self._random = random.Random(seed)

    def prompt(self, tokens: int) -> list[int]:
        """Return a prompt of so many tokens."""
        return self._random.choices(self._ids, k=tokens)
