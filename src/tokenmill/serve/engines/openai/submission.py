"""One request at a server: what is sent, and what its answer means.

Exists so that the engine only keeps books. It must not know breakers, queues or frontends.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from tokenmill.errors import ProtocolError, TokenmillError, WorkerFailed
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Item
from tokenmill.protocol.text import TextFinished, TextPieces, TextRequest, TextUsage
from tokenmill.serve.engines.openai.wire import failure_of, outcome_of, read_piece, request_body
from tokenmill.serve.engines.remote.breaker import Outcome
from tokenmill.serve.engines.remote.http_client import (
    DONE,
    MOST_BODY_BYTES,
    EventStream,
    HttpCall,
    HttpClient,
)

LAST_BYTES_S = 5.0
"""Between the last event of an answer and its end in HTTP."""

MOST_ERROR_BYTES = 64 * 1024
"""So much of an error is read."""

CANCELLED = Failed(499, "cancelled", "nobody waits for the answer")


class Books(Protocol):
    """Who is told what comes of a submission."""

    def said(self, request_id: RequestId, item: Item) -> None:
        """Pass an item on to the frontend; after a ``TextFinished`` or ``Failed`` it is over."""
        ...

    def judged(self, request_id: RequestId, outcome: Outcome) -> None:
        """What the request says of its server, told at its first answer, and at its end if that is bad."""
        ...


class TextSubmission:
    """``start`` it; it says its items to the books, and exactly one end. What of an answer is kept is bounded
    by ``MOST_BODY_BYTES``, and of a stream by one event."""

    def __init__(
        self,
        request_id: RequestId,
        request: TextRequest,
        model: str,
        client: HttpClient,
        books: Books,
        now: float,
    ) -> None:
        self.heard_at = now
        """When the server last said something, on the engine's clock."""
        self.streamed = request.stream
        self._request_id = request_id
        self._request = request
        self._model = model
        self._client = client
        self._books = books
        self._call: HttpCall | None = None
        self._status = 0
        self._events = EventStream()
        self._body: list[bytes] = []
        self._size = 0
        self._number = 0
        self._unfinished: set[int] = set()
        self._reason = ""
        self._usage: TextUsage | None = None
        self._heard = False
        """Bytes came since somebody last looked."""
        self._judged = False
        self._over = False

    def start(self) -> None:
        """Send the request."""
        body = request_body(self._request, self._model)
        self._call = self._client.send("POST", f"/v1/{self._request.path}", self, body=body)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self.fail(CANCELLED, Outcome.NEITHER)

    def fail(self, failure: Failed, outcome: Outcome) -> None:
        """End it from outside."""
        if not self._over:
            self._hang_up()
            self._judge(outcome)
            self._end(failure)

    def silent_since(self, now: float) -> float:
        """Return for how many seconds nothing was heard; to be asked a few times a second."""
        if self._heard:
            self._heard = False
            self.heard_at = now
        return now - self.heard_at

    # AnswerListener ------------------------------------------------------------------------------------

    def began(self, status: int) -> None:
        """The head is there."""
        self._heard = True
        self._status = status

    def data(self, piece: bytes) -> None:
        """A piece of the body."""
        self._heard = True
        if self._over:
            return
        if self._status != 200 or not self._request.stream:
            self._keep(piece)
            return
        try:
            self._take(self._events.feed(piece))
        except (ProtocolError, WorkerFailed) as error:
            self.fail(Failed(502, "upstream_broken", error.message, True), Outcome.BAD)

    def ended(self, error: TokenmillError | None) -> None:
        """The body is complete, or it broke."""
        if self._over:
            return
        if error is not None:
            self.fail(Failed(502, "upstream_lost", error.message, True), Outcome.BAD)
        elif self._status != 200:
            self._judge(outcome_of(self._status))
            self._end(failure_of(self._status, b"".join(self._body)))
        elif self._request.stream:
            self._finish([], stopped=False)
        else:
            self._answered(b"".join(self._body))

    # Inside --------------------------------------------------------------------------------------------

    def _keep(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size <= (MOST_BODY_BYTES if self._status == 200 else MOST_ERROR_BYTES):
            self._body.append(piece)
        elif self._status == 200:
            too_large = f"the answer is larger than {MOST_BODY_BYTES} bytes"
            self.fail(Failed(502, "upstream_broken", too_large), Outcome.BAD)

    def _take(self, payloads: list[bytes]) -> None:
        """Pass on what the events hold, in one item. Raises ProtocolError."""
        pieces: list[bytes] = []
        for payload in payloads:
            if payload == DONE:
                self._finish(pieces, stopped=True)
                return
            piece = read_piece(payload)
            if piece.failure is not None:
                self.fail(piece.failure, Outcome.BAD)
                return
            self._usage = piece.usage or self._usage
            if piece.choices:
                pieces.append(piece.choices)
                self._unfinished.update(piece.begun)
                self._unfinished.difference_update(piece.ended)
                self._reason = piece.ended.get(0, self._reason)
        if pieces:
            self._judge(Outcome.GOOD)
            self._books.said(self._request_id, TextPieces(self._number, pieces))
            self._number += len(pieces)

    def _finish(self, pieces: list[bytes], *, stopped: bool) -> None:
        """The stream is over. ``stopped``: it said so; else it must at least have ended what it began."""
        begun = bool(self._number or pieces)
        if self._unfinished or not (begun or stopped):
            why = "the server ended its answer in the middle" if begun else "the server's answer is empty"
            self.fail(Failed(502, "upstream_broken", why, True), Outcome.BAD)
            return
        self._judge(Outcome.GOOD)
        self._expect_the_end()
        self._end(TextFinished(self._number, pieces, self._reason or "stop", self._usage))

    def _answered(self, payload: bytes) -> None:
        """A whole answer."""
        try:
            piece = read_piece(payload)
        except ProtocolError as error:
            self.fail(Failed(502, "upstream_broken", error.message, True), Outcome.BAD)
            return
        if piece.failure is not None or not piece.choices:
            empty = Failed(502, "upstream_broken", "the server's answer has no choices", True)
            self.fail(piece.failure or empty, Outcome.BAD)
            return
        self._judge(Outcome.GOOD)
        self._end(TextFinished(0, [piece.choices], piece.ended.get(0, "stop"), piece.usage))

    def _judge(self, outcome: Outcome) -> None:
        """Good is said once; a bad end is bad, however well it began."""
        if not self._judged or outcome is Outcome.BAD:
            self._judged = True
            self._books.judged(self._request_id, outcome)

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _expect_the_end(self) -> None:
        """The last event is there; the end of the HTTP answer comes with it, or the connection is given
        up."""
        if self._call is not None and not self._call.over:
            asyncio.get_running_loop().call_later(LAST_BYTES_S, self._call.cancel)

    def _end(self, item: Item) -> None:
        self._over = True
        self._books.said(self._request_id, item)
