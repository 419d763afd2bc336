"""One request at a vLLM server: what is sent, what its answer means, and the second way when a handoff fails.

Exists so that the engine only keeps books. It must not know how the server was started or what frontends are.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from tokenmill.clock import Clock
from tokenmill.errors import ProtocolError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.handoffs import VLLM_TRANSPORTS
from tokenmill.protocol.ids import RequestId, Role
from tokenmill.protocol.items import Failed, Finished, FinishReason, Offered, PromptScored, Tokens
from tokenmill.serve.engines.remote import submission as remote
from tokenmill.serve.engines.remote.http_client import Headers, HttpClient
from tokenmill.serve.engines.vllm.losses import Lost, lost_by
from tokenmill.serve.engines.vllm.wire import (
    COMPLETIONS_PATH,
    GENERATE_PATH,
    Choice,
    Chunk,
    KvOffer,
    completion_body,
    error_of,
    failure_of,
    generate_body,
    prompt_logprobs,
    read_chunk,
    speaks_tokens,
    token_logprobs,
)

ASK_FOR_HANDOFF: dict[str, object] = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
"""What vLLM's connectors want to hear from whoever asks for a prefill that is decoded elsewhere."""

_FULL = 429
"""The server has no room: computing the prompt there needs more of it."""


class Books(remote.Books, Protocol):
    """Who is told what comes of a submission."""

    def clue(self, request_id: RequestId) -> str:
        """What the server wrote to its log about a failed transfer; "" where that is not known."""
        ...


class Submission(remote.Submission):
    """See the base. ``headers``: sent with the request; ``lease_s``: how long an offered cache is kept."""

    _books: Books

    def __init__(
        self,
        request: GenerateRequest,
        client: HttpClient,
        model: str,
        books: Books,
        headers: Headers = (),
        *,
        clock: Clock,
        lease_s: float,
        transport: str = VLLM_TRANSPORTS["nixl"],
        token_route: bool = False,
    ) -> None:
        super().__init__(request, client, books)
        self._model = model
        self._headers = headers
        self._clock = clock
        self._lease_s = lease_s
        self._transport = transport
        self._token_route = token_route
        self._offer: KvOffer | None = None
        self._lost: tuple[Lost | None, str] | None = None
        self._last: Choice | None = None
        self._tail: list[int] = []
        self._cached_tokens = 0

    def start(self) -> None:
        """Send the request in the way its role asks for."""
        request = self._request
        if request.role is Role.PREFILL:
            self._send(stream=False, max_tokens=1, kv_transfer_params=ASK_FOR_HANDOFF)
        elif request.role is Role.DECODE and request.handoff is not None:
            self._start_decode(request.handoff)
        else:
            self._send_here()

    # Sending ------------------------------------------------------------------------------------------

    def _start_decode(self, handoff: Handoff) -> None:
        try:
            if handoff.transport != self._transport:
                raise msgspec.ValidationError(
                    f"its transport is {handoff.transport!r}, ours is {self._transport!r}: give both "
                    "stages the same engine and kv_connector"
                )
            self._offer = msgspec.json.decode(handoff.descriptor, type=KvOffer)
        except msgspec.DecodeError as error:
            self._compute_here(Lost.UNREADABLE, f"the handoff cannot be read: {error}")
            return
        age_s = self._clock.wall() - self._offer.made_at_s
        if age_s >= self._offer.lease_s:
            # vLLM would read what lies in those blocks by now.
            why = f"the cache was kept for {self._offer.lease_s:g} s, and that was {age_s:.1f} s ago"
            self._compute_here(Lost.LEASE_EXPIRED, why, self._offer.first_token)
            return
        self._send(stream=True, kv_transfer_params=self._offer.params)

    def _send_here(self, first_token: int | None = None) -> None:
        self._send(stream=self._request.sampling.prompt_logprobs is None, first_token=first_token)

    def _compute_here(self, reason: Lost | None, why: str, first_token: int | None = None) -> None:
        """Go on without the cache. ``reason`` None: the server's log may know. ``first_token``: the prefill
        side's, which the client has already."""
        self._offer = None
        self._lost = (reason, why)
        self._hang_up()
        if first_token is not None:
            self._index += 1
        self._send_here(first_token)

    def _tell_lost(self) -> None:
        """Say why the cache did not come. Later than it failed, since its server's log comes another way."""
        if self._lost is None:
            return
        (reason, why), self._lost = self._lost, None
        if reason is None:
            clue = self._books.clue(self._request.request_id)
            reason, why = lost_by(clue or why), f"{why} ({clue})" if clue else why
        self._books.handoff_failed(self._request.request_id, reason.value, why)

    def _send(
        self,
        *,
        stream: bool,
        max_tokens: int | None = None,
        first_token: int | None = None,
        kv_transfer_params: dict[str, object] | None = None,
    ) -> None:
        own_route = self._token_route and speaks_tokens(self._request)
        body = (generate_body if own_route else completion_body)(
            self._request,
            self._model,
            stream=stream,
            max_tokens=max_tokens,
            first_token=first_token,
            kv_transfer_params=kv_transfer_params,
        )
        headers = (("x-request-id", self._request.request_id), *self._headers)
        self._post(GENERATE_PATH if own_route else COMPLETIONS_PATH, body, headers, stream=stream)

    # The answer ---------------------------------------------------------------------------------------

    def _failure(self, status: int, payload: bytes) -> Failed:
        return failure_of(status, payload)

    def _refused(self, failure: Failed) -> None:
        """A decode whose cache does not come is computed here, as long as nothing has been said."""
        if self._offer is not None and self._last is None and failure.status != _FULL:
            self._compute_here(None, failure.message, self._offer.first_token)
        else:
            self._end(failure)

    def _event(self, payload: bytes) -> None:
        chunk = read_chunk(payload)
        failure = error_of(chunk)
        if failure is not None:
            self._hang_up()
            self._refused(failure)
            return
        if chunk.usage is not None:
            self._cached_tokens = chunk.usage.cached_tokens
        if chunk.choices:
            self._piece(chunk.choices[0])

    def _piece(self, choice: Choice) -> None:
        tokens = choice.token_ids
        if tokens is None:
            raise ProtocolError("the engine sends no token ids; it needs vLLM 0.10.2 or newer")
        if tokens and not self._check_first(tokens[0]):
            return
        self._last = choice
        if tokens:
            if choice.finish_reason is not None:
                self._tail = tokens
                return
            self._books.said(
                self._request.request_id,
                Tokens(self._index, tokens, token_logprobs(choice, self._request.sampling.logprobs)),
            )
            self._index += len(tokens)

    def _check_first(self, token: int) -> bool:
        """Note the first token. False: the decode side came to another one than the prefill side has told, so
        that what follows would not fit; it goes on from the told one instead."""
        if self._last is not None:
            return True
        self._books.progressed(self._request.request_id)
        self._tell_lost()
        offer = self._offer
        if offer is None:
            return True
        if token != offer.first_token:
            why = "the decode side sampled another first token than the prefill side"
            self._compute_here(Lost.WRONG_CACHE, why, offer.first_token)
            return False
        self._books.handed_in()
        return True

    def _complete(self) -> None:
        last = self._last
        if last is None or last.finish_reason is None:
            self._refused(Failed(502, "engine_broken", "the answer ended too early", retryable=True))
            return
        if last.finish_reason == "abort":
            self._end(Failed(503, "engine_aborted", "the engine gave the request up", retryable=True))
            return
        logprobs = token_logprobs(last, self._request.sampling.logprobs) if self._tail else None
        self._end(self._finished(last, self._tail, logprobs=logprobs))

    def _finished(self, last: Choice, tokens: list[int], **scores: object) -> Finished:
        stopped = last.finish_reason == "stop"
        stop_token = tokens[-1] if stopped and tokens else None
        return msgspec.structs.replace(
            Finished(
                index=self._index,
                tokens=tokens,
                reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
                stop_token=stop_token,
                cached_tokens=self._cached_tokens,
            ),
            **scores,
        )

    def _answered(self, payload: bytes) -> None:
        """A whole answer: of a prefill, or of a request for the prompt's log probabilities."""
        try:
            chunk = read_chunk(payload)
            choice = chunk.choices[0] if chunk.choices else Choice()
            if choice.token_ids is None or choice.finish_reason is None:
                raise ProtocolError("the engine's answer holds no token ids")
            scored = token_logprobs(choice, self._request.sampling.logprobs)
        except ProtocolError as error:
            self._end(Failed(502, "engine_broken", error.message, retryable=True))
            return
        request = self._request
        self._cached_tokens = chunk.usage.cached_tokens if chunk.usage else 0
        self._books.progressed(request.request_id)
        if choice.prompt_logprobs is not None and request.sampling.prompt_logprobs is not None:
            scores = prompt_logprobs(choice, request.prompt, request.sampling.prompt_logprobs)
            self._books.said(request.request_id, PromptScored(scores))
        finished = self._finished(choice, choice.token_ids, logprobs=scored)
        more = finished.reason is FinishReason.LENGTH and self._index + 1 < request.sampling.max_tokens
        if request.role is Role.PREFILL and more:
            self._end(self._offered(chunk, finished))
        else:
            self._end(finished)

    def _offered(self, chunk: Chunk, finished: Finished) -> Finished | Failed:
        """Say where the cache is; returns the end that follows."""
        if not chunk.kv_transfer_params or not finished.tokens:
            why = "the engine offers no KV cache: it runs without a KV connector (--kv-transfer-config)"
            return Failed(502, "no_kv_connector", why, retryable=True)
        request = self._request
        offer = KvOffer(
            chunk.kv_transfer_params, finished.tokens[0], made_at_s=self._clock.wall(), lease_s=self._lease_s
        )
        tokens = len(request.prompt) + len(request.output)
        handoff = Handoff(self._transport, msgspec.json.encode(offer), tokens, early=False)
        self._books.handed_out()
        self._books.said(request.request_id, Offered(handoff, self._cached_tokens))
        return msgspec.structs.replace(finished, reason=FinishReason.HANDOFF, stop_token=None)

    def _end(self, item: Finished | Failed) -> None:
        self._over = True
        self._tell_lost()
        super()._end(item)
