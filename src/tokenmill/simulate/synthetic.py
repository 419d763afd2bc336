"""Made-up traces: arrivals and lengths drawn from named distributions, the same for the same seed.

Exists so that a plant can be tried at loads that nobody has recorded. It must not know how a load is written
down (``synthetic_words``), nor workers.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from itertools import count
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from tokenmill.simulate.synthetic_arrivals import arrivals_of
from tokenmill.simulate.traces import Trace, TracedRequest

BLOCK_TOKENS: Final = 64
"""Tokens in a block that made-up prompts share or not: prefixes are equal up to a whole number of blocks."""

Kind = Literal["even", "poisson", "gamma", "bursts", "diurnal", "chats"]

Above0 = Annotated[float, Meta(gt=0)]
AtLeast0 = Annotated[float, Meta(ge=0)]
Tokens = Annotated[int, Meta(ge=1, le=10_000_000)]


class Load(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of load and its figures; which arrivals each kind makes stands in ``synthetic_arrivals``.

    ``rate``: requests a second on average (chats: new chats). ``seconds``, ``requests``: where it ends; at
    least one of them. ``prompt``, ``output``: tokens on average (chats: of one turn's message and answer),
    lognormal with the coefficients of variation ``prompt_cv`` and ``output_cv``, 0: always the same.
    ``shared``: tokens at the head of each prompt that it has in common with others, as with one of
    ``systems`` system prompts, in whole blocks of ``BLOCK_TOKENS``; part of ``prompt`` (chats: before it).
    ``tenants``: how many there are, drawn evenly; 0: none are named.
    """

    kind: Kind
    rate: Above0 = 1.0
    seconds: AtLeast0 = 0.0
    requests: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    prompt: Tokens = 1000
    output: Tokens = 200
    prompt_cv: AtLeast0 = 0.0
    output_cv: AtLeast0 = 0.0
    shared: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    systems: Annotated[int, Meta(ge=1, le=100_000)] = 1
    tenants: Annotated[int, Meta(ge=0, le=100_000)] = 0
    cv: Above0 = 3.0
    """gamma: the coefficient of variation of the gaps between requests; 1 is Poisson."""
    times: Annotated[float, Meta(gt=1)] = 5.0
    """bursts: how many times as dense requests come in a burst as between bursts."""
    burst_s: Above0 = 10.0
    """bursts: how long one lasts on average."""
    calm_s: Above0 = 50.0
    """bursts: how long it is between two on average."""
    swing: Annotated[float, Meta(ge=0, le=1)] = 0.8
    """diurnal: how far the rate goes up and down, as a share of ``rate``."""
    period_s: Above0 = 86_400.0
    """diurnal: how long a day is; it begins at its quietest."""
    turns: Annotated[float, Meta(ge=1, le=10_000)] = 5.0
    """chats: turns of one on average, geometrically distributed."""
    think_s: AtLeast0 = 20.0
    """chats: from an answer's end to the next message on average, exponentially distributed."""
    answer_ms: AtLeast0 = 25.0
    """chats: how long a token of an answer is taken to take the reader; a trace knows no plant."""
    longest: Tokens = 131_072
    """chats: one ends before a turn would have more tokens than this, prompt and answer."""


def make_trace(load: Load, seed: int) -> Trace:
    """Return the trace of a load. Raises ValueError for a load without an end."""
    if not load.seconds and not load.requests:
        raise ValueError("the load has no end")
    chance = random.Random(f"{seed} {load.kind}")
    made = _chats(load, chance) if load.kind == "chats" else _prompts(load, chance)
    return Trace(list(made), BLOCK_TOKENS)


def _prompts(load: Load, chance: random.Random) -> Iterator[TracedRequest]:
    common = load.shared // BLOCK_TOKENS
    most = load.requests or math.inf
    for number, at_s in enumerate(arrivals_of(load, chance)):
        if number >= most or (load.seconds and at_s >= load.seconds):
            return
        prompt = _tokens(chance, load.prompt, load.prompt_cv)
        first = chance.randrange(load.systems) * common if common else 0
        blocks = min(common, prompt // BLOCK_TOKENS)
        tenant = _tenant(load, chance)
        yield TracedRequest(
            at_s,
            prompt,
            _tokens(chance, load.output, load.output_cv),
            tuple(range(first, first + blocks)),
            "",
            tenant,
        )


def _tokens(chance: random.Random, mean: float, variation: float) -> int:
    """Draw a length: lognormal by its mean and coefficient of variation, at least one token."""
    if not variation:
        return max(1, round(mean))
    spread = math.log1p(variation * variation)
    return max(1, round(chance.lognormvariate(math.log(mean) - spread / 2, math.sqrt(spread))))


def _tenant(load: Load, chance: random.Random) -> str:
    return f"tenant-{chance.randrange(load.tenants)}" if load.tenants else ""


class _Chat:
    """One conversation: its prompt grows by each answer and message. ``ids``: names of its blocks so far."""

    __slots__ = ("ids", "prompt", "system", "tenant", "turns_left")

    def __init__(self, system: list[int], shared: int, turns: int, tenant: str) -> None:
        self.system = system
        self.ids = list(system)
        self.prompt = shared
        self.turns_left = turns
        self.tenant = tenant

    def say(self, message: int, fresh: Iterator[int]) -> None:
        """Add a message; blocks that began before keep their names, since what was said stays."""
        self.prompt += message
        blocks = -(-self.prompt // BLOCK_TOKENS)
        while len(self.ids) < blocks:
            self.ids.append(next(fresh))


def _chats(load: Load, chance: random.Random) -> Iterator[TracedRequest]:
    """Merge the turns of all chats in the order of time. The heap holds the chats that are open."""
    system_blocks = load.shared // BLOCK_TOKENS
    fresh = count(load.systems * system_blocks)
    starts = arrivals_of(load, chance)
    open_chats: list[tuple[float, int, _Chat]] = []
    numbers = count()
    next_start, made = next(starts), 0
    end_s = load.seconds or math.inf
    while True:
        if next_start < end_s and (not open_chats or next_start <= open_chats[0][0]):
            heapq.heappush(open_chats, (next_start, next(numbers), _new_chat(load, chance, system_blocks)))
            next_start = next(starts)
        if not open_chats or open_chats[0][0] >= end_s or (load.requests and made >= load.requests):
            return
        if next_start < open_chats[0][0]:
            continue
        at_s, number, chat = heapq.heappop(open_chats)
        output = _tokens(chance, load.output, load.output_cv)
        chat.say(_tokens(chance, load.prompt, load.prompt_cv), fresh)
        if chat.prompt + output > load.longest:
            continue
        yield TracedRequest(at_s, chat.prompt, output, tuple(chat.ids), "", chat.tenant)
        made += 1
        chat.turns_left -= 1
        if chat.turns_left:
            chat.say(output, fresh)
            pause_s = output * load.answer_ms / 1000
            if load.think_s:
                pause_s += chance.expovariate(1 / load.think_s)
            heapq.heappush(open_chats, (at_s + pause_s, number, chat))


def _new_chat(load: Load, chance: random.Random, system_blocks: int) -> _Chat:
    first = chance.randrange(load.systems) * system_blocks
    turns = 1
    if load.turns > 1:  # geometric with the mean asked for
        turns += int(math.log(1 - chance.random()) / math.log(1 - 1 / load.turns))
    return _Chat(list(range(first, first + system_blocks)), load.shared, turns, _tenant(load, chance))
