"""Who may read which blocks, and until when: the state machine of exports and leases.

Facts go in as events with the time at which they happened, instructions come out. It must not know
sockets, clocks or memory, so that its rule can be tested under virtual time: each export is freed exactly
once, and never while a receiver whose lease is valid may be copying.

    FILLING --sealed--> SEALED --released by its reader--> freed, taken
    either  --withdrawn, reader lost, lease ended (SEALED only)--> freed, not taken
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from tokenmill.serve.transfer import control

_UNKNOWN = "no such export, or the wrong token"

ConnectionId = int
ExportKey = tuple[int, bytes]
"""An export's number, and the token of 16 random bytes that opens it."""


@dataclass(slots=True)
class Entry:
    """One live export. ``meta`` is None while it is being filled; ``expires_at`` counts from then on."""

    export: int
    token: bytes
    blocks: Sequence[int]
    tokens: int
    lease_s: float
    ready: int = 0
    meta: bytes | None = None
    reader: ConnectionId | None = None
    expires_at: float = float("inf")


@dataclass(frozen=True, slots=True)
class Advanced:
    """The owner has the first ``tokens`` tokens in place."""

    export: int
    tokens: int


@dataclass(frozen=True, slots=True)
class OwnerSealed:
    """The owner has all tokens in place."""

    export: int
    meta: bytes


@dataclass(frozen=True, slots=True)
class OwnerWithdrew:
    """The owner will not deliver."""

    export: int
    reason: str


@dataclass(frozen=True, slots=True)
class ReaderOpened:
    """A receiver asked for an export on a connection."""

    connection: ConnectionId
    export: int
    token: bytes
    need_fd: bool = False


@dataclass(frozen=True, slots=True)
class ReaderJoined:
    """The receiver of an export wants to fetch on another connection too."""

    connection: ConnectionId
    export: int
    token: bytes


@dataclass(frozen=True, slots=True)
class ReaderBeat:
    """A receiver showed that it is alive: by a heartbeat, or by taking data."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class ReaderReleased:
    """A receiver has all it wants."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class ReaderLost:
    """A connection ended."""

    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Nothing happened but time."""


Event = (
    Advanced
    | OwnerSealed
    | OwnerWithdrew
    | ReaderOpened
    | ReaderJoined
    | ReaderBeat
    | ReaderReleased
    | ReaderLost
    | TimePassed
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message on a connection; ``with_fd``: the memory's file descriptor goes along."""

    connection: ConnectionId
    message: control.Message
    with_fd: bool = False


@dataclass(frozen=True, slots=True)
class Free:
    """The export's blocks may be reused; ``taken``: a receiver has their content."""

    export: int
    taken: bool


Instruction = Send | Free


@dataclass(slots=True)
class ExportTable:
    """All exports of one sender. ``shares_fd``: its memory can be mapped by a receiver.

    Remembers why the last ``remembered`` exports ended, so that a late receiver learns it.
    """

    shares_fd: bool = False
    remembered: int = 1024
    entries: dict[int, Entry] = field(default_factory=dict)
    _by_reader: dict[ConnectionId, Entry] = field(default_factory=dict)
    _joined: dict[ConnectionId, int] = field(default_factory=dict)
    _ended: OrderedDict[int, tuple[bytes, str]] = field(default_factory=OrderedDict)
    _expiries: list[tuple[float, int]] = field(default_factory=list)
    _next_export: int = 1

    def add(self, blocks: Sequence[int], tokens: int, lease_s: float, key: ExportKey | None = None) -> Entry:
        """Offer the first ``tokens`` tokens held in ``blocks``; they are being filled.

        ``key``: number and token, where somebody else has written the descriptor already; no number
        is used twice. Raises ValueError for one that is in use.
        """
        export, token = key or (self._next_export, secrets.token_bytes(16))
        if export in self.entries:
            raise ValueError(f"export {export} is open")
        entry = Entry(export, token, tuple(blocks), tokens, lease_s)
        self._next_export = max(self._next_export, export + 1)
        self.entries[entry.export] = entry
        return entry

    def read_by(self, connection: ConnectionId) -> Entry | None:
        """Return the export that a connection has open, or has joined and is still open."""
        entry = self._by_reader.get(connection)
        return entry if entry is not None else self.entries.get(self._joined.get(connection, 0))

    def next_deadline(self) -> float | None:
        """When ``TimePassed`` is due, at the latest; None if never. May be early, is never late."""
        while self._expiries:
            expires_at, export = self._expiries[0]
            entry = self.entries.get(export)
            if entry is not None and entry.expires_at <= expires_at:
                return expires_at
            heappop(self._expiries)
            if entry is not None:  # renewed since it was noted
                heappush(self._expiries, (entry.expires_at, export))
        return None

    def handle(self, event: Event, now: float) -> list[Instruction]:
        """Take a fact that became known at ``now`` (seconds); return what to do about it, in order."""
        match event:
            case Advanced():
                return self._advance(event)
            case OwnerSealed():
                return self._seal(event, now)
            case OwnerWithdrew():
                return self._end(self.entries.get(event.export), event.reason)
            case ReaderOpened():
                return self._open(event, now)
            case ReaderJoined():
                return self._join(event)
            case ReaderBeat():
                self._renew(self.read_by(event.connection), now)
                return []
            case ReaderReleased():
                return self._release(event.connection)
            case ReaderLost():
                self._joined.pop(event.connection, None)
                return self._end(self._by_reader.pop(event.connection, None), "its receiver was lost")
            case TimePassed():
                return self._expire(now)

    def _advance(self, event: Advanced) -> list[Instruction]:
        entry = self.entries.get(event.export)
        if entry is None or event.tokens <= entry.ready:
            return []
        entry.ready = min(event.tokens, entry.tokens)
        return [] if entry.reader is None else [Send(entry.reader, control.Ready(entry.ready))]

    def _seal(self, event: OwnerSealed, now: float) -> list[Instruction]:
        entry = self.entries.get(event.export)
        if entry is None or entry.meta is not None:
            return []
        entry.ready, entry.meta = entry.tokens, event.meta
        self._renew(entry, now)
        heappush(self._expiries, (entry.expires_at, entry.export))
        return [] if entry.reader is None else [Send(entry.reader, control.Sealed(entry.meta))]

    def _open(self, event: ReaderOpened, now: float) -> list[Instruction]:
        refusal = self._refusal(event)
        if refusal is not None:
            return [Send(event.connection, control.Refused(refusal, unknown=refusal == _UNKNOWN))]
        entry = self.entries[event.export]
        entry.reader = event.connection
        self._by_reader[event.connection] = entry
        self._renew(entry, now)
        fd = event.need_fd and self.shares_fd
        answer: list[Instruction] = [Send(event.connection, control.Opened(fd), with_fd=fd)]
        if entry.meta is not None:
            answer.append(Send(event.connection, control.Sealed(entry.meta)))
        elif entry.ready:
            answer.append(Send(event.connection, control.Ready(entry.ready)))
        return answer

    def _refusal(self, event: ReaderOpened) -> str | None:
        """Why a receiver may not have an export; one without its token learns nothing about it."""
        entry = self.entries.get(event.export)
        token, reason = (entry.token, "") if entry else self._ended.get(event.export, (b"", ""))
        if not token or not hmac.compare_digest(token, event.token):
            return _UNKNOWN
        if entry is None:
            return f"the export has ended: {reason}"
        if entry.reader is not None:
            return "another receiver is taking this export"
        if event.connection in self._by_reader:
            return "this connection has another export open"
        return None

    def _join(self, event: ReaderJoined) -> list[Instruction]:
        entry = self.entries.get(event.export)
        if entry is None or entry.reader is None or not hmac.compare_digest(entry.token, event.token):
            return [Send(event.connection, control.Refused("no such export is open, or the wrong token"))]
        self._joined[event.connection] = event.export
        return [Send(event.connection, control.Opened(fd=False))]

    def _release(self, connection: ConnectionId) -> list[Instruction]:
        entry = self._by_reader.get(connection)
        if entry is None:  # its lease ended while it was copying
            return [Send(connection, control.Released(valid=False))]
        if entry.meta is None:
            return [
                Send(connection, control.Released(valid=False)),
                *self._end(entry, "released while being filled"),
            ]
        self._forget(entry, "it has been taken")
        return [Send(connection, control.Released(valid=True)), Free(entry.export, taken=True)]

    def _expire(self, now: float) -> list[Instruction]:
        due: list[Instruction] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            due += self._end(self.entries[heappop(self._expiries)[1]], "its lease ended")
        return due

    def _end(self, entry: Entry | None, reason: str) -> list[Instruction]:
        if entry is None:
            return []
        told: list[Instruction] = []
        if entry.reader in self._by_reader and entry.reader is not None:
            told.append(Send(entry.reader, control.Withdrawn(reason)))
        self._forget(entry, reason)
        return [*told, Free(entry.export, taken=False)]

    def _forget(self, entry: Entry, reason: str) -> None:
        del self.entries[entry.export]
        if entry.reader is not None:
            self._by_reader.pop(entry.reader, None)
        self._ended[entry.export] = (entry.token, reason)
        while len(self._ended) > self.remembered:
            self._ended.popitem(last=False)

    @staticmethod
    def _renew(entry: Entry | None, now: float) -> None:
        if entry is not None and entry.meta is not None:
            entry.expires_at = now + entry.lease_s
