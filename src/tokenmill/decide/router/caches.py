"""What all workers have cached, as they tell and as it is predicted.

Exists to keep index, predictions and each worker's place in them together. It must not know loads or costs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from tokenmill.decide.router.index import Owner, PrefixIndex
from tokenmill.decide.router.lookup import Finder
from tokenmill.decide.router.predictions import Predictions
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import BlockHash, RequestId
from tokenmill.protocol.kv_events import CacheCleared, KvEvents

_REMEMBERED = 4096
"""Prompts that were routed and not sent yet whose names are kept: they are sent at once, or soon are not."""

_PREDICTED_SHARE = 4
"""Names of predictions are at most this part of the index's."""


Names = Mapping[int, Sequence[BlockHash]]
"""Of one prompt's blocks, by block size."""


class Caches:
    """The index, the predictions beside it, and the names of prompts that were just routed."""

    def __init__(self, settings: RouterSettings) -> None:
        self.index = PrefixIndex(settings.index_blocks, settings.index_shards)
        self.predictions = Predictions(max(1, settings.index_blocks // _PREDICTED_SHARE))
        self.gaps_total = 0
        self._settings = settings
        self._finders: dict[int, Finder] = {}
        # With how many workers each is still to be sent to; the oldest goes first.
        self._routed: OrderedDict[RequestId, tuple[Names, int]] = OrderedDict()

    def finder(self, block_tokens: int) -> Finder:
        """Return who looks prompts up for workers of that block size."""
        found = self._finders.get(block_tokens)
        if found is None:
            found = self._finders[block_tokens] = Finder(self.index, self.predictions, block_tokens)
        return found

    def changed(self, owner: Owner, batch: KvEvents) -> tuple[Owner, bool]:
        """Take a worker's events in. Return its place, which may be a new one, and whether none were
        missed."""
        if not self.index.is_next(owner, batch):
            self.gaps_total += 1
            return self.renewed(owner), False
        for event in batch.events:
            if isinstance(event, CacheCleared):
                owner = self.renewed(owner)
            else:
                self.index.apply(owner, event)
        self.index.sweep()
        return owner, True

    def renewed(self, owner: Owner) -> Owner:
        """Forget what is known of a worker's cache: give it a clean place."""
        if not owner.blocks:
            return owner
        fresh = self.index.join()
        fresh.next_event, fresh.told = owner.next_event, owner.told
        self.index.leave(owner)
        return fresh

    def routed(self, request_id: RequestId, names: Names, sends: int) -> None:
        """A prompt was routed: keep its names until it was sent to ``sends`` workers."""
        self._routed.pop(request_id, None)
        self._routed[request_id] = names, sends
        if len(self._routed) > _REMEMBERED:
            self._routed.popitem(last=False)

    def sent(self, owner: Owner, block_tokens: int, request_id: RequestId, now: float) -> list[BlockHash]:
        """A routed prompt was sent to a worker: expect it to be cached there. Returns the names expected."""
        names, sends = self._routed.pop(request_id, (None, 0))
        if names is None:
            return []
        if sends > 1:
            self._routed[request_id] = names, sends - 1
        missing = self.index.missing(names.get(block_tokens, ()), owner)
        self.predict(owner, missing, now)
        return missing

    def predict(self, owner: Owner, names: Sequence[BlockHash], now: float) -> None:
        """Blocks of these names will be cached at a worker soon."""
        settings = self._settings
        exact = settings.kv_events and owner.told
        ttl_s = settings.predicted_ttl_s if exact else settings.approximate_ttl_s
        self.predictions.add(owner, names, now, ttl_s)
