"""What an engine's thread has said and the event loop has not taken yet: joined when it is taken.

Exists so that a loop that is behind catches up at the price of one step: a request's tokens of several steps
become one item, for this worker to send and for the frontend to take. It must not know threads or streams.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Item, Tokens, join_tokens


class JoinedItems:
    """Items of several steps, each request's in order. Holds what the steps gave, and no more."""

    def __init__(self) -> None:
        self.items: list[tuple[RequestId, Item]] = []
        self._last: dict[RequestId, int] = {}

    def add(self, items: Iterable[tuple[RequestId, Item]]) -> None:
        """Take the items of the next step."""
        known, last = self.items, self._last
        for request_id, item in items:
            at = last.get(request_id)
            if at is not None:
                earlier = known[at][1]
                joined = join_tokens(earlier, item) if type(earlier) is Tokens else None
                if joined is not None:
                    known[at] = (request_id, joined)
                    continue
            last[request_id] = len(known)
            known.append((request_id, item))
