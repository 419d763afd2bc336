"""Which blocks a prefill engine offers, and when. The scheduler's side; decides, does no I/O.

An export is written down while its prompt's last tokens are being computed, so that the workers have it
before anybody can ask: the answer that tells of it leaves only after that step. It must not know vLLM's
classes.

    asked --scheduled to its end--> declared --finished--> offered --released--> forgotten
                                             --aborted---> withdrawn
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence

from tokenmill.serve.engines.vllm.connector.cache import CacheGroup, complete, offered_tokens
from tokenmill.serve.engines.vllm.connector.offers import VERSION, GroupOffer, Offer
from tokenmill.serve.engines.vllm.connector.orders import Give
from tokenmill.serve.transfer.control import Ticket, encode_ticket
from tokenmill.serve.transfer.exports import ExportKey

_Group = tuple[range, ExportKey, tuple[int, ...]]


class Giving:
    """Offers of one engine. ``lease_s``: how long one is kept for a taker that does not come.

    As many as there are requests in the engine: vLLM bounds them.
    """

    def __init__(
        self,
        groups: Sequence[CacheGroup],
        *,
        lease_s: float,
        new_token: Callable[[], bytes] = lambda: secrets.token_bytes(16),
    ) -> None:
        self._groups = tuple(groups)
        self._lease_s = lease_s
        self._new_token = new_token
        self._next_export = 1
        self._declared: dict[str, tuple[int, list[_Group]]] = {}

    def declare(self, request_id: str, prompt_tokens: int, tables: Sequence[Sequence[int]]) -> Give | None:
        """Plan an export: the prompt will be whole with the step that is being scheduled. None: there is
        nothing to hand over. The one before of the same request is void. ``tables``: a block table a group.
        """
        self._declared.pop(request_id, None)
        tokens = offered_tokens(prompt_tokens)
        token = self._new_token()
        planned: list[_Group] = []
        for group, table in zip(self._groups, tables, strict=True):
            places = group.needed(tokens)
            blocks = tuple(table[places.start : places.stop])
            if len(blocks) != len(places) or not complete(blocks):
                return None
            planned.append((places, (self._next_export, token), blocks))
            self._next_export += 1
        if not any(blocks for _, _, blocks in planned):
            return None
        self._declared[request_id] = (prompt_tokens, planned)
        return Give(request_id, tuple((key, blocks) for _, key, blocks in planned if blocks))

    def offer(self, request_id: str, fingerprint: str, ranks: Sequence[Ticket]) -> Offer | None:
        """Return the offer of a declared request that has finished, None for others. ``ranks``: blank tickets
        of the workers' memories."""
        prompt_tokens, planned = self._declared.pop(request_id, (0, []))
        if not planned:
            return None
        groups = [
            GroupOffer(
                places.start,
                len(blocks),
                [self._descriptor(rank, key, blocks) for rank in ranks] if blocks else [],
            )
            for places, key, blocks in planned
        ]
        return Offer(VERSION, fingerprint, prompt_tokens, offered_tokens(prompt_tokens), groups)

    def aborted(self, request_id: str) -> bool:
        """Forget a request that ended otherwise; whether the workers must be told."""
        return self._declared.pop(request_id, None) is not None

    def _descriptor(self, rank: Ticket, key: ExportKey, blocks: Sequence[int]) -> bytes:
        export, token = key
        return encode_ticket(
            rank.filled(export=export, token=token, blocks=blocks, tokens=len(blocks), lease_s=self._lease_s)
        )
