"""The double's steps: who runs, who waits, who is pushed out. No I/O.

One step admits what fits, reads whole prompts, and gives every running sequence one token.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tokenmill.testing.sglang_double.contract import Asked
from tokenmill.testing.sglang_double.pages import Pages
from tokenmill.testing.sglang_double.settings import DoubleSettings
from tokenmill.testing.sglang_double.tokens import is_end, next_token

Ranking = list[tuple[int, float]]

Finish = dict[str, object]
"""SGLang's finish_reason."""


@dataclass(eq=False)
class Sequence:
    """One request. ``cache``: the tokens that its KV was made of, which a wrong handoff makes others than its
    prompt. ``deliver`` is called after each step with it."""

    asked: Asked
    cache: list[int]
    deliver: Callable[[Sequence], None]
    output: list[int] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    received: bool = False
    running: bool = False
    finish: Finish | None = None
    cached_tokens: int = 0
    retractions: int = 0

    @property
    def salt(self) -> str:
        """What keeps its prefix apart: the salt, which events tell, and behind it the key, which they do
        not."""
        return "\0".join(filter(None, (self.asked.cache_salt, self.asked.extra_key)))


@dataclass
class Counts:
    """Totals since the start."""

    computed: int = 0
    cached: int = 0
    decoded: int = 0
    prompts: int = 0
    retracted: int = 0
    steps: int = 0


class Scheduler:
    """``add`` sequences, ``abort`` them, ``step`` while there is ``work``."""

    def __init__(self, settings: DoubleSettings) -> None:
        self.counts = Counts()
        self.pages = Pages(
            settings.max_total_tokens // settings.page_size, settings.page_size, keep=settings.caches_prefixes
        )
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._settings = settings

    @property
    def work(self) -> bool:
        """Whether a step would do something."""
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it may end at once."""
        limit = self._settings.max_queued_requests
        if limit and len(self.waiting) >= limit:
            self._finish(sequence, _abort("The request queue is full.", 503))
            return
        if not self.pages.fits_alone(len(sequence.cache) + 1):
            text = f"Input length ({len(sequence.cache)} tokens) exceeds the maximum allowed length."
            self._finish(sequence, _abort(text, 400))
            return
        self.waiting.append(sequence)

    def abort(self, prefix: str) -> int:
        """End everything whose id begins so, as SGLang does; returns how many."""
        victims = [each for each in (*self.waiting, *self.running) if each.asked.rid.startswith(prefix)]
        for sequence in victims:
            self.fail(sequence, "Aborted", None)
        return len(victims)

    def fail(self, sequence: Sequence, message: str, status: int | None) -> None:
        """End a sequence badly."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        self._finish(sequence, _abort(message, status))

    def step(self) -> None:
        """Admit, compute, deliver."""
        self.counts.steps += 1
        self._admit()
        for sequence in tuple(self.running):
            if sequence.running and self._has_room_for_token(sequence):
                self._make_token(sequence)

    # Inside -------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._settings.max_running_requests:
            sequence = self.waiting[0]
            ids = sequence.cache + sequence.output
            names = self.pages.matched(ids, sequence.salt)
            if not self.pages.has_room(len(ids) + 1, names):
                return
            self.waiting.popleft()
            self.pages.hold(names)
            sequence.pages = list(names)
            sequence.running = True
            self.running.append(sequence)
            self._read(sequence, ids, len(names) * self._settings.page_size)

    def _read(self, sequence: Sequence, ids: list[int], cached: int) -> None:
        self.pages.fill(sequence.pages, ids, sequence.salt)
        if not sequence.received:
            self.counts.cached += cached
            self.counts.computed += len(ids) - cached
        if not sequence.output:
            sequence.cached_tokens = max(cached, sequence.cached_tokens)
            self.counts.prompts += len(ids)

    def _has_room_for_token(self, sequence: Sequence) -> bool:
        """Push the youngest out until there is room."""
        while not self.pages.fill(sequence.pages, sequence.cache + sequence.output, sequence.salt):
            victim = self.running[-1]
            self._stop(victim)
            victim.retractions += 1
            self.counts.retracted += 1
            self.waiting.appendleft(victim)
            if victim is sequence:
                return False
        return True

    def _make_token(self, sequence: Sequence) -> None:
        settings, params = self._settings, sequence.asked.sampling_params
        ids = sequence.cache + sequence.output
        token, best = next_token(
            ids, len(sequence.output), params, settings.vocab_size, settings.eos_token_id
        )
        sequence.output.append(token)
        sequence.rankings.append(best)
        self.counts.decoded += 1
        self.judge(sequence)

    def judge(self, sequence: Sequence) -> None:
        """End a sequence if its last token ends it, and deliver."""
        params, made = sequence.asked.sampling_params, len(sequence.output)
        if self._settings.mode == "prefill":
            self._finish(sequence, {"type": "length", "length": 0})
        elif is_end(sequence.output[-1], made, params, self._settings.eos_token_id):
            self._finish(sequence, {"type": "stop", "matched": sequence.output[-1]})
        elif made >= params.max_new_tokens:
            self._finish(sequence, {"type": "length", "length": made})
        else:
            sequence.deliver(sequence)

    def _stop(self, sequence: Sequence) -> None:
        if sequence.running:
            sequence.running = False
            self.running.remove(sequence)
            self.pages.release(sequence.pages)
            sequence.pages = []

    def _finish(self, sequence: Sequence, reason: Finish) -> None:
        if sequence.finish is None:
            self._stop(sequence)
            sequence.finish = reason
            sequence.deliver(sequence)


def _abort(message: str, status: int | None) -> Finish:
    return {"type": "abort", "message": message, "status_code": status, "err_type": None}
