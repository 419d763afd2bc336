"""One request at an engine's server: sent, heard, ended exactly once. What it says is the engine's business.

Exists so that an engine's own module holds only how that server is asked and what its answers mean. It must
not know how a server was started or what frontends are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from tokenmill.errors import TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Finished, FinishReason, Item
from tokenmill.serve.engines.remote.http_client import DONE, EventStream, Headers, HttpCall, HttpClient


class Books(Protocol):
    """Who is told what comes of a submission."""

    def said(self, request_id: RequestId, item: Item) -> None:
        """Pass an item on to the frontend."""
        ...

    def progressed(self, request_id: RequestId) -> None:
        """The prompt is computed."""
        ...

    def handed_in(self) -> None:
        """A cache made elsewhere was taken over."""
        ...

    def handed_out(self) -> None:
        """A cache was offered."""
        ...

    def handoff_failed(self, request_id: RequestId, reason: str, why: str) -> None:
        """A cache made elsewhere did not come. ``reason``: a word for counting."""
        ...


class Submission(ABC):
    """``start`` it; it says its items to ``books`` and exactly one end, also when cancelled.

    ``_post`` sends; what is answered comes to ``_event`` (a stream) or ``_answered`` (a whole), and what goes
    wrong to ``_refused``. Each of them may ``_post`` anew: the answer before is heard no more.
    """

    def __init__(self, request: GenerateRequest, client: HttpClient, books: Books) -> None:
        self._request = request
        self._client = client
        self._books = books
        self._index = len(request.output)
        """Of the next token to be said, in the output."""
        self._call: HttpCall | None = None
        self._over = False
        self._status = 0
        self._whole: list[bytes] | None = None  # an error's body, or an answer that is not streamed
        self._events = EventStream()

    @abstractmethod
    def start(self) -> None:
        """Send the request in the way its role asks for."""

    def cancel(self) -> None:
        """Stop it. Says ``Finished`` with reason cancelled."""
        if not self._over:
            self._abandon()
            self._end(Finished(self._index, [], FinishReason.CANCELLED))

    def fail(self, failure: Failed) -> None:
        """End it badly."""
        if not self._over:
            self._abandon()
            self._end(failure)

    # What an engine's module says ---------------------------------------------------------------------

    @abstractmethod
    def _event(self, payload: bytes) -> None:
        """Read one event of a streamed answer. Raises ProtocolError where it makes no sense."""

    @abstractmethod
    def _complete(self) -> None:
        """A streamed answer is over."""

    @abstractmethod
    def _answered(self, payload: bytes) -> None:
        """Read an answer that is not streamed."""

    @abstractmethod
    def _failure(self, status: int, payload: bytes) -> Failed:
        """Return what an answer with an error status means to the frontend."""

    @abstractmethod
    def _refused(self, failure: Failed) -> None:
        """The server does not do it: go another way, or ``_end`` it."""

    def _broke(self, why: str) -> None:
        """An answer makes no sense."""
        self.fail(Failed(502, "engine_broken", why, retryable=True))

    def _abandon(self) -> None:
        """Nobody wants the answer any more. Most servers abort a request whose connection closes."""
        self._hang_up()

    # What it uses -------------------------------------------------------------------------------------

    def _post(self, path: str, body: bytes, headers: Headers = (), *, stream: bool) -> None:
        self._whole = None if stream else []
        self._events = EventStream()
        self._call = self._client.send("POST", path, self, body=body, headers=headers)

    def _hang_up(self) -> None:
        if self._call is not None:
            self._call.cancel()

    def _end(self, item: Finished | Failed) -> None:
        self._over = True
        self._books.said(self._request.request_id, item)

    # AnswerListener -----------------------------------------------------------------------------------

    def began(self, status: int) -> None:
        """The head is there."""
        self._status = status
        if status != 200:
            self._whole = []

    def data(self, piece: bytes) -> None:
        """A piece of the body."""
        if self._over:
            return
        if self._whole is not None:
            self._whole.append(piece)
            return
        call = self._call
        try:
            for payload in self._events.feed(piece):
                if payload == DONE:
                    self._complete()
                else:
                    self._event(payload)
                if self._over or self._call is not call:
                    return  # that event has ended it, or sent it anew
        except TokenmillError as error:
            self._broke(error.message)

    def ended(self, error: TokenmillError | None) -> None:
        """The answer is complete or broke."""
        if self._over:
            return
        if error is not None:
            self._refused(Failed(502, "engine_lost", error.message, retryable=True))
        elif self._whole is None:
            self._complete()
        elif self._status != 200:
            self._refused(self._failure(self._status, b"".join(self._whole)))
        else:
            self._answered(b"".join(self._whole))
