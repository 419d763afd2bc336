"""One rank's KV event messages in order: what may be applied, what must be asked for again.

Exists because the messages come over a lossy channel. It must not know sockets, time or what the events mean.
"""

from __future__ import annotations

from enum import Enum, auto

from tokenmill.serve.engines.kv_events.wire import EventBatch

MOST_HELD = 10_000
"""Messages held back while earlier ones are asked for again; one a step, so that it is minutes."""


class Verdict(Enum):
    """What a message means for the reader."""

    APPLY = auto()
    """``take`` returned messages to apply, or there was nothing new."""
    REPLAY = auto()
    """Messages are missing: ask for all from ``expected`` on, and call ``replayed`` with the answer."""


class MessageOrder:
    """Takes live messages and replays; gives them back in order, each once.

    ``expected``: number of the next message. Held messages are bounded by ``MOST_HELD``.
    """

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        self._held: list[EventBatch] = []
        self._replaying = False

    def take(self, batch: EventBatch) -> tuple[Verdict, list[EventBatch]]:
        """Take a live message. REPLAY is said once a gap."""
        if self._replaying:
            self._held.append(batch)
            if len(self._held) > MOST_HELD:
                del self._held[0]
            return Verdict.APPLY, []
        if batch.sequence < self.expected:
            return Verdict.APPLY, []
        if batch.sequence > self.expected:
            self._replaying = True
            self._held.append(batch)
            return Verdict.REPLAY, []
        self.expected += 1
        return Verdict.APPLY, [batch]

    def hold(self) -> None:
        """A replay is asked for before any message has come: hold what comes until ``replayed``."""
        self._replaying = True

    def replayed(self, batches: list[EventBatch]) -> tuple[bool, list[EventBatch]]:
        """Take the answer to a replay, empty where none came.

        Returns whether everything known must be forgotten first, since messages are lost for good, and the
        messages to apply.
        """
        self._replaying = False
        held, self._held = self._held, []
        known = {batch.sequence: batch for batch in (*batches, *held) if batch.sequence >= self.expected}
        ready: list[EventBatch] = []
        lost = False
        for number in sorted(known):
            if number != self.expected:
                lost = True
                ready.clear()
            ready.append(known[number])
            self.expected = number + 1
        return lost, ready
