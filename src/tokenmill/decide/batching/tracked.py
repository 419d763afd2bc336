"""A sequence with what only the scheduler needs to know of it, worked out once so that a step need not.

It must not decide anything.
"""

from __future__ import annotations

from tokenmill.decide.batching.types import Finish, Sequence, SequenceRequest
from tokenmill.protocol.block_hashes import BlockNames, PrefixNames
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import FinishReason


class Tracked(Sequence, kw_only=True, eq=False):
    """One sequence from arrival to the last of its blocks.

    ``rank``: (priority, -arrival number); the larger is served first and preempted last. ``names``: hashes of
    its full blocks. ``end_len``: length of ``tokens`` at which it ends for LENGTH. ``stop_len``: length below
    which ``stop_ids`` do not end it. ``capacity``: tokens its blocks hold. ``next_commit``: when ``computed``
    reaches this, one more block is full. ``pulls``: a transfer brings its KV. ``exports``: its KV is offered.
    ``offered``: an offer is open, its blocks may be read until ``ExportReleased``. ``ended``: the
    requester has been told the end; only blocks are left. ``duplicates``: another sequence has computed some
    of its blocks at the same time.
    """

    rank: tuple[int, int]
    names: BlockNames
    end_len: int
    stop_len: int
    next_commit: int
    pulls: bool = False
    exports: bool = False
    capacity: int = 0
    offered: bool = False
    ended: bool = False
    duplicates: bool = False

    def end_reason(self, token: int) -> FinishReason | None:
        """Return why the sequence ends with ``token``, its last token, or None if it goes on."""
        length = len(self.tokens)
        if token in self.request.stop_ids and length >= self.stop_len:
            return FinishReason.STOP
        return FinishReason.LENGTH if length >= self.end_len else None

    def finish(self, reason: FinishReason) -> Finish:
        """Return the requester's last word, and note that it was said."""
        self.ended = True
        stop_token = self.tokens[-1] if reason is FinishReason.STOP else None
        return Finish(self.request.request_id, reason, stop_token, self.cached_tokens)


def track(
    request: SequenceRequest, arrival_s: float, number: int, most_tokens: int, block_tokens: int
) -> Tracked:
    """Return a waiting sequence. ``number``: arrivals before it. ``most_tokens``: length that ends any."""
    prompt_len = len(request.prompt)
    exports = request.role is Role.PREFILL
    tokens = request.prompt[:]
    tokens.extend(request.output)
    return Tracked(
        request=request,
        tokens=tokens,
        prompt_len=prompt_len,
        arrival=arrival_s,
        rank=(request.priority, -number),
        names=request.names or PrefixNames(block_tokens, request.cache_salt),
        end_len=min(prompt_len + request.max_tokens, most_tokens),
        stop_len=prompt_len + request.min_tokens,
        next_commit=block_tokens,
        pulls=request.receives and not exports,
        exports=exports,
    )
