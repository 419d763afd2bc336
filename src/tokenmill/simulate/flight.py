"""One request on its way through the plant: what is known of it beside its record.

It must not know who carries it.
"""

from __future__ import annotations

from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.simulate.prompts import Prompt
from tokenmill.simulate.record import RequestRecord


class Flight:
    """``request_id``: of the current attempt. ``done_tokens``: output tokens that earlier attempts gave;
    ``tokens``: those of this one. ``last_s``: when the last of all came. ``prefill_worker``,
    ``decode_worker``: who has it now. ``lost``: workers that it has lost or that had no place for it."""

    __slots__ = (
        "asked_tokens",
        "decode_worker",
        "done_tokens",
        "last_s",
        "lost",
        "prefill_worker",
        "priority",
        "prompt",
        "record",
        "request_id",
        "session",
        "tenant",
        "tokens",
    )

    def __init__(
        self,
        record: RequestRecord,
        prompt: Prompt,
        asked_tokens: int,
        *,
        session: str,
        tenant: str,
        priority: int,
    ) -> None:
        self.record = record
        self.prompt = prompt
        self.asked_tokens = asked_tokens
        self.session = session
        self.tenant = tenant
        self.priority = priority
        self.request_id = RequestId(str(record.number))
        self.done_tokens = self.tokens = 0
        self.last_s = 0.0
        self.prefill_worker: WorkerId | None = None
        self.decode_worker: WorkerId | None = None
        self.lost: frozenset[WorkerId] = frozenset()

    @property
    def missing_tokens(self) -> int:
        """Output tokens that are still to come."""
        return self.asked_tokens - self.done_tokens - self.tokens

    def start_over(self, worker: WorkerId | None) -> None:
        """Its attempt has failed: it goes on elsewhere, with what was generated so far as its prompt."""
        if self.tokens:
            self.prompt = self.prompt.continued(self.tokens)
            self.done_tokens += self.tokens
            self.tokens = 0
        if worker is not None:
            self.lost |= {worker}
        self.prefill_worker = self.decode_worker = None
        self.request_id = RequestId(f"{self.record.number}.{self.record.attempts}")
