"""Frontend -> frontend: what this frontend's router did that no worker has reported yet.

Exists so that several frontends of one factory choose as one would: each tells the others what it sends
where, between two load reports of the workers, and which prefix it expects to be cached there. Best effort: a
note that is lost is made good by the worker's next report. It must not know how notes travel.
"""

from __future__ import annotations

import msgspec

from tokenmill.protocol.ids import BlockHash, RequestId, WorkerId


class SentNote(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A sequence was sent to a worker: ``prefill_tokens`` to compute there, of ``tokens`` in all."""

    worker: WorkerId
    request_id: RequestId
    prefill_tokens: int
    tokens: int = 0


class EndedNote(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """A sequence that was sent to a worker has ended there."""

    worker: WorkerId
    request_id: RequestId


class PredictedNote(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A prompt was routed to a worker, so that blocks of these names will be cached there soon."""

    worker: WorkerId
    names: list[BlockHash]


RouteNote = SentNote | EndedNote | PredictedNote
