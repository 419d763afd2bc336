"""One request at an SGLang server: what is sent, and what its answer means.

Exists so that the engine only keeps books. It must not know how the server was started or what frontends are.

A server of a pair does its half only together with the other one: a prefill server answers when the decode
server has the cache, and a decode server waits for that. So the handoff is offered before anything is
computed, and the first token comes from the decode server, at the moment at which the prefill server would
tell it too. A prompt for which nobody waits (one token is asked for, or the prompt's log probabilities) a
prefill server computes alone.
"""

from __future__ import annotations

import random

import msgspec

from tokenmill.errors import ProtocolError, TokenmillError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed, Finished, FinishReason, Offered, PromptScored, Tokens
from tokenmill.serve.engines.remote import submission as remote
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.sglang.launch import MODES
from tokenmill.serve.engines.sglang.losses import Lost, lost_by
from tokenmill.serve.engines.sglang.server import ServerFacts
from tokenmill.serve.engines.sglang.wire import (
    HANDOFF_FAILED,
    NOBODY,
    TRANSPORT,
    Chunk,
    FinishedBecause,
    Pairing,
    error_of,
    failure_of,
    generate_body,
    new_tokens,
    prompt_logprobs,
    read_chunk,
    token_logprobs,
)

PATH = "/generate"
ABORT_PATH = "/abort_request"

_ROOMS = 2**62


class Submission(remote.Submission):
    """See the base. ``bootstrap_host``: where decode servers find this prefill server."""

    def __init__(
        self,
        request: GenerateRequest,
        client: HttpClient,
        facts: ServerFacts,
        books: remote.Books,
        *,
        bootstrap_host: str = "",
        rank: int | None = None,
    ) -> None:
        super().__init__(request, client, books)
        self._facts = facts
        self._bootstrap_host = bootstrap_host
        self._rank = rank
        # SGLang aborts every request whose id begins with the one it is given: no id may begin another.
        self._rid = f"{request.request_id}|"
        self._paired = False
        self._asks_for_scores = False
        self._seen = 0
        self._ended_by: FinishedBecause | None = None
        self._tail = Finished(self._index, [], FinishReason.LENGTH)

    def start(self) -> None:
        """Send the request in the way its role asks for."""
        role, mode = self._request.role, self._facts.mode
        if role is Role.PREFILL and mode == MODES[Role.PREFILL]:
            self._start_prefill()
        elif role is Role.DECODE and mode == MODES[Role.DECODE]:
            self._start_decode(self._request.handoff)
        elif mode == MODES[Role.BOTH]:
            scores = self._wants_scores()
            self._send(stream=not scores, scores_of_prompt=scores)
        elif mode == MODES[Role.PREFILL] and self._left == 1:
            self._compute_for_nobody()
        else:
            why = f"an SGLang server in {mode} mode serves nobody alone; it needs a partner"
            self._end(Failed(503, "needs_partner", why, retryable=True))

    def _room(self) -> int:
        """Return a room that no other request has: 0 means none to SGLang, and 63 bits are what it can count.
        A prefill server's rank is the room's remainder."""
        room = random.SystemRandom().randrange(_ROOMS)
        if self._rank is None:
            return room + 1
        ranks = self._facts.ranks
        return (room // ranks + 1) * ranks + self._rank

    # Sending ------------------------------------------------------------------------------------------

    @property
    def _left(self) -> int:
        return self._request.sampling.max_tokens - len(self._request.output)

    def _wants_scores(self) -> bool:
        return self._request.sampling.prompt_logprobs is not None

    def _start_prefill(self) -> None:
        if self._left == 1 or self._wants_scores():
            self._compute_for_nobody()
        else:
            self._offer()

    def _compute_for_nobody(self) -> None:
        self._send(
            stream=False,
            pairing=Pairing(NOBODY, self._facts.bootstrap_port, self._room()),
            scores_of_prompt=self._wants_scores(),
        )

    def _offer(self) -> None:
        """Send the prompt, and tell at once where its cache will be."""
        request = self._request
        pairing = Pairing(self._bootstrap_host, self._facts.bootstrap_port, self._room())
        self._paired = True
        self._send(stream=False, pairing=pairing)
        tokens = len(request.prompt) + len(request.output)
        handoff = Handoff(TRANSPORT, msgspec.json.encode(pairing), tokens, early=True)
        self._books.said(request.request_id, Offered(handoff))

    def _start_decode(self, handoff: Handoff | None) -> None:
        try:
            if handoff is None or handoff.transport != TRANSPORT:
                raise msgspec.ValidationError(f"{handoff and handoff.transport!r} is not SGLang's")
            pairing = msgspec.json.decode(handoff.descriptor, type=Pairing)
        except msgspec.DecodeError as error:
            self._not_paired(Lost.UNREADABLE, f"the handoff cannot be read: {error}")
            return
        self._paired = True
        self._send(stream=True, pairing=pairing)

    def _send(self, *, stream: bool, pairing: Pairing | None = None, scores_of_prompt: bool = False) -> None:
        self._asks_for_scores = scores_of_prompt
        alone = self._facts.mode == MODES[Role.BOTH]
        body = generate_body(
            self._request,
            self._rid,
            stream=stream,
            pairing=pairing,
            scores_of_prompt=scores_of_prompt,
            rank=self._rank if alone else None,
        )
        self._post(PATH, body, stream=stream)

    def _abandon(self) -> None:
        """Hang up and say so: on its own a server looks every few seconds only whether somebody listens."""
        if self._call is not None and not self._call.over:
            self._hang_up()
            body = msgspec.json.encode({"rid": self._rid})
            self._client.send("POST", ABORT_PATH, _Unheard(), body=body)

    # The answer ---------------------------------------------------------------------------------------

    def _failure(self, status: int, payload: bytes) -> Failed:
        return failure_of(status, payload)

    def _refused(self, failure: Failed) -> None:
        """The server says no. Of a pair, its own failures (500) are those to come together or to hand
        over."""
        if self._paired and failure.status == 500 and not self._seen:
            self._not_paired(lost_by(failure.message), failure.message)
        else:
            self._end(failure)

    def _not_paired(self, reason: Lost, why: str) -> None:
        self._books.handoff_failed(self._request.request_id, reason.value, why)
        self._end(Failed(503, HANDOFF_FAILED, why, retryable=True))

    def _event(self, payload: bytes) -> None:
        chunk = read_chunk(payload)
        failure = error_of(chunk)
        if failure is not None:
            self._hang_up()
            self._refused(failure)
            return
        self._piece(chunk)

    def _piece(self, chunk: Chunk) -> None:
        tokens = new_tokens(chunk, self._seen)
        meta, sampling = chunk.meta_info, self._request.sampling
        scored = token_logprobs(meta, len(tokens), sampling.logprobs)
        if tokens and not self._seen:
            self._books.progressed(self._request.request_id)
            if self._paired:
                self._books.handed_in()
        self._seen += len(tokens)
        if meta.finish_reason is not None:
            self._ended_by = meta.finish_reason
            self._tail = self._finished(tokens, meta.finish_reason, meta.cached_tokens, logprobs=scored)
        elif tokens:
            self._books.said(self._request.request_id, Tokens(self._index, tokens, scored))
            self._index += len(tokens)

    def _complete(self) -> None:
        if self._ended_by is None:
            failure = Failed(502, "engine_broken", "the answer ended too early", retryable=True)
            self._end(failure)
        else:
            self._end(self._tail)

    def _finished(
        self, tokens: list[int], ended_by: FinishedBecause, cached_tokens: int, **scores: object
    ) -> Finished:
        stopped = ended_by.type == "stop"
        stop_token = tokens[-1] if stopped and tokens and tokens[-1] == ended_by.matched else None
        return msgspec.structs.replace(
            Finished(
                index=self._index,
                tokens=tokens,
                reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
                stop_token=stop_token,
                cached_tokens=cached_tokens,
            ),
            **scores,
        )

    def _answered(self, payload: bytes) -> None:
        """A whole answer: of a prefill, or of a request for the prompt's log probabilities."""
        request = self._request
        try:
            chunk = read_chunk(payload)
            failure = error_of(chunk)
            if failure is not None:
                self._refused(failure)
                return
            tokens = new_tokens(chunk, 0)
            ended_by = chunk.meta_info.finish_reason
            if ended_by is None or not (tokens or self._paired):
                raise ProtocolError("the engine's answer holds no tokens")
            self._tell_scores(chunk)
            scored = token_logprobs(chunk.meta_info, len(tokens), request.sampling.logprobs)
        except ProtocolError as error:
            self._end(Failed(502, "engine_broken", error.message, retryable=True))
            return
        cached_tokens = chunk.meta_info.cached_tokens
        if self._paired:
            self._books.handed_out()
            self._end(Finished(self._index, [], FinishReason.HANDOFF, cached_tokens=cached_tokens))
        elif self._facts.mode == MODES[Role.PREFILL] and self._left > 1:
            self._offer()
        else:
            self._books.progressed(request.request_id)
            end = self._finished(tokens, self._real_end(tokens[-1], ended_by), cached_tokens, logprobs=scored)
            self._end(end)

    def _tell_scores(self, chunk: Chunk) -> None:
        most = self._request.sampling.prompt_logprobs
        if most is not None and self._asks_for_scores:
            scores = prompt_logprobs(chunk.meta_info, len(self._request.prompt), most)
            self._books.said(self._request.request_id, PromptScored(scores))

    def _real_end(self, token: int, ended_by: FinishedBecause) -> FinishedBecause:
        """A prefill server always says that it ended by length; what the token says is for the decode
        side."""
        sampling = self._request.sampling
        if self._facts.mode != MODES[Role.PREFILL] or len(self._request.output) + 1 < sampling.min_tokens:
            return ended_by
        ends = token in sampling.stop_token_ids
        ends = ends or (token in self._facts.eos_token_ids and not sampling.ignore_eos)
        return FinishedBecause("stop", token) if ends else ended_by


class _Unheard:
    """Takes an answer that says nothing."""

    def began(self, status: int) -> None:
        """``AnswerListener``."""

    def data(self, piece: bytes) -> None:
        """``AnswerListener``."""

    def ended(self, error: TokenmillError | None) -> None:
        """``AnswerListener``."""
