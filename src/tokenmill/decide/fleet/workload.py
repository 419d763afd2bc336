"""What a plant is to serve, as far as placement cares: kinds of requests with their shares, and how evenly
they come.

Exists so that a plan from two numbers (prompt and output length) and one from a trace go the same way. It
must not know traces' formats, models or devices.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple

import msgspec

from tokenmill.errors import ConfigError


class Shape(NamedTuple):
    """One kind of request. ``share``: of all requests. ``cached_tokens`` of the ``prompt_tokens`` are found
    in a cache; at least one token is always computed."""

    share: float
    prompt_tokens: float
    cached_tokens: float
    output_tokens: float

    @property
    def new_tokens(self) -> float:
        """Prompt tokens that must be computed."""
        return max(1.0, self.prompt_tokens - self.cached_tokens)

    @property
    def mean_context(self) -> float:
        """What a new prompt token attends to, on average."""
        return self.prompt_tokens - self.new_tokens / 2

    @property
    def decode_steps(self) -> float:
        """Steps after the first token; a request of one token counts as one step, so that nothing is free."""
        return max(1.0, self.output_tokens - 1)


class Workload(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Shapes whose shares add up to 1. ``burstiness``: squared coefficient of variation of the times between
    arrivals (1: Poisson; above: bursts)."""

    shapes: tuple[Shape, ...]
    burstiness: float = 1.0

    @cached_property
    def prompt_tokens(self) -> float:
        """Of a request, on average."""
        return sum(shape.share * shape.prompt_tokens for shape in self.shapes)

    @cached_property
    def new_tokens(self) -> float:
        """Prompt tokens of a request that are computed, on average."""
        return sum(shape.share * shape.new_tokens for shape in self.shapes)

    @cached_property
    def cached_tokens(self) -> float:
        """Prompt tokens of a request that are found in a cache, on average."""
        return self.prompt_tokens - self.new_tokens

    @cached_property
    def output_tokens(self) -> float:
        """Of a request, on average."""
        return sum(shape.share * shape.output_tokens for shape in self.shapes)

    @cached_property
    def decode_steps(self) -> float:
        """Of a request after its first token, on average."""
        return sum(shape.share * shape.decode_steps for shape in self.shapes)

    @cached_property
    def decode_context(self) -> float:
        """Length of a sequence seen at a random moment of its decoding (long ones are seen longer)."""
        steps = sum(s.share * s.decode_steps * (s.prompt_tokens + s.decode_steps / 2) for s in self.shapes)
        return steps / self.decode_steps

    @cached_property
    def decode_context_sd(self) -> float:
        """Standard deviation of that length."""
        squares = 0.0
        for shape in self.shapes:
            start, steps = shape.prompt_tokens, shape.decode_steps
            squares += shape.share * steps * (start * start + start * steps + steps * steps / 3)
        return math.sqrt(max(0.0, squares / self.decode_steps - self.decode_context**2))

    @cached_property
    def longest(self) -> float:
        """Tokens of the longest sequence, prompt and output."""
        return max(shape.prompt_tokens + shape.output_tokens for shape in self.shapes)


def steady(prompt_tokens: float, output_tokens: float, cached_tokens: float = 0.0) -> Workload:
    """Return a workload of requests that are all alike. Raises ConfigError for lengths that cannot be."""
    if prompt_tokens < 1 or output_tokens < 1:
        raise ConfigError("isl and osl: a request has at least one token of each", param="isl")
    if not 0 <= cached_tokens < prompt_tokens:
        raise ConfigError(
            f"cached: {cached_tokens:g} of {prompt_tokens:g} prompt tokens; give fewer than the prompt has",
            param="cached",
        )
    return Workload(shapes=(Shape(1.0, prompt_tokens, cached_tokens, output_tokens),))


MOST_SHAPES = 12
"""A trace is summed up in so many shapes at most: enough for its percentiles, few enough to be quick."""


def from_requests(
    requests: Iterable[tuple[float, float, float]], *, burstiness: float = 1.0, most: int = MOST_SHAPES
) -> Workload:
    """Sum up requests of (prompt, cached, output) tokens. Raises ConfigError when there are none.

    They are put in the order of the tokens they need computed and cut into ``most`` parts, finer at the upper
    end, where percentiles are decided; each part counts as its mean.
    """
    ordered = sorted(requests, key=lambda each: (each[0] - each[1], each[2]))
    if not ordered:
        raise ConfigError("trace: there are no requests in it", param="trace")
    total = len(ordered)
    edges = sorted({round(total * (1 - (1 - i / most) ** 2)) for i in range(most)} | {total})
    shapes = []
    for low, high in zip([0, *edges], edges, strict=False):
        part = ordered[low:high]
        if part:
            prompt, cached, output = (sum(column) / len(part) for column in zip(*part, strict=True))
            shapes.append(Shape(len(part) / total, max(1.0, prompt), cached, max(1.0, output)))
    return Workload(shapes=tuple(shapes), burstiness=burstiness)
