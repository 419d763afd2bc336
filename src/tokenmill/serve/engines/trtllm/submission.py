"""One request at a TensorRT-LLM server: what is sent, what its answer means, and the second way when a
handoff fails.

Exists so that the engine only keeps books. It must not know how the server was started or what frontends are.
"""

from __future__ import annotations

import secrets

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.handoff import Handoff
from tokenmill.protocol.ids import Role
from tokenmill.protocol.items import Failed, Finished, FinishReason, Offered, Tokens
from tokenmill.serve.engines.remote import submission as remote
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.trtllm.losses import Lost, lost_by
from tokenmill.serve.engines.trtllm.wire import (
    CONTEXT_ONLY,
    GENERATION_ONLY,
    ID_FIELD,
    TRANSPORT,
    Choice,
    KvOffer,
    Params,
    completion_body,
    error_of,
    failure_of,
    read_chunk,
    token_logprobs,
)

PATH = "/v1/completions"

FIRST_GLOBAL_ID = 1 << 40
"""A server's own request ids lie below; ids given by others must lie from here up to 2**63."""

_GOES_ON = ("length", "not_finished")
"""How a prefill's answer ends that is to be continued; older servers say the one, newer ones the other."""

_REASONS = {"engine_lost": Lost.RECEIVER_LOST, "engine_broken": Lost.ENGINE}
"""By a failure's code, where that says more than its words."""


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """What a server understands. ``fields``, ``disagg_fields``: of a completion request and of its
    ``disaggregated_params``; None: it does not tell. ``end_ids``: tokens that end a text by themselves.
    """

    model: str
    fields: frozenset[str] | None = None
    disagg_fields: frozenset[str] | None = None
    end_ids: frozenset[int] = frozenset()


class Submission(remote.Submission):
    """See the base. ``dialect``: what the server understands."""

    def __init__(
        self, request: GenerateRequest, client: HttpClient, dialect: Dialect, books: remote.Books
    ) -> None:
        super().__init__(request, client, books)
        self._dialect = dialect
        self._offer: KvOffer | None = None
        self._prefill_id: int | None = None
        self._prefills = False
        self._placed = False  # whether the first piece's place in the output is known
        self._said = False  # whether tokens went out that the client must not get anew
        self._last: Choice | None = None
        self._tail: Tokens | None = None
        self._cached_tokens = 0

    def start(self) -> None:
        """Send the request in the way its role asks for."""
        request = self._request
        wanted = request.sampling.max_tokens - len(request.output)
        if request.role is Role.PREFILL and wanted > 1:
            self._start_prefill()
        elif request.role is Role.DECODE and request.handoff is not None:
            self._start_decode(request.handoff)
        else:
            self._send(stream=True)

    # Sending ------------------------------------------------------------------------------------------

    def _start_prefill(self) -> None:
        params: Params = {"request_type": CONTEXT_ONLY}
        if ID_FIELD in (self._dialect.disagg_fields or ()):
            # Two prefill servers number requests alike; an id of ours keeps theirs apart at the decoder.
            self._prefill_id = FIRST_GLOBAL_ID + secrets.randbelow((1 << 63) - FIRST_GLOBAL_ID)
            params[ID_FIELD] = self._prefill_id
        self._prefills = True
        self._send(stream=False, params=params)

    def _start_decode(self, handoff: Handoff) -> None:
        try:
            if handoff.transport != TRANSPORT:
                raise msgspec.ValidationError(f"transport {handoff.transport!r} is not TensorRT-LLM's")
            self._offer = offer = msgspec.json.decode(handoff.descriptor, type=KvOffer)
        except msgspec.DecodeError as error:
            self._compute_here(Lost.UNREADABLE, f"the handoff cannot be read: {error}")
            return
        self._index += 1  # the client has the first token from the prefill side
        self._send(stream=True, params=offer.params)

    def _compute_here(self, reason: Lost, why: str) -> None:
        """Forget the cache made elsewhere and go on from the first token that it came with, if it is known:
        the client has it already."""
        offer, self._offer = self._offer, None
        self._hang_up()
        self._placed, self._last, self._tail = False, None, None
        self._books.handoff_failed(self._request.request_id, reason.value, why)
        self._send(stream=True, first_token=None if offer is None else offer.first_token)

    def _send(self, *, stream: bool, first_token: int | None = None, params: Params | None = None) -> None:
        body = completion_body(
            self._request, self._dialect.model, stream=stream, first_token=first_token, params=params
        )
        unknown = sorted(body.keys() - self._dialect.fields) if self._dialect.fields is not None else []
        if unknown:
            why = f"the engine's /v1/completions does not know {', '.join(unknown)}"
            self._end(Failed(400, "unsupported", why))
            return
        self._post(PATH, msgspec.json.encode(body), stream=stream)

    # The answer ---------------------------------------------------------------------------------------

    def _failure(self, status: int, payload: bytes) -> Failed:
        return failure_of(status, payload)

    def _refused(self, failure: Failed) -> None:
        """A decode whose cache does not come is computed here, as long as nothing has been said. The server
        calls whatever goes wrong a bad request (400): a truly bad one fails again, elsewhere too."""
        if self._offer is not None and not self._said:
            self._compute_here(_REASONS.get(failure.code) or lost_by(failure.message), failure.message)
        elif self._prefills:
            self._end(msgspec.structs.replace(failure, status=max(502, failure.status), retryable=True))
        else:
            self._end(failure)

    def _broke(self, why: str) -> None:
        self._hang_up()
        self._refused(Failed(502, "engine_broken", why, retryable=True))

    def _event(self, payload: bytes) -> None:
        chunk = read_chunk(payload)
        failure = error_of(chunk)
        if failure is not None:
            self._hang_up()
            self._refused(failure)
            return
        counted = None
        if chunk.usage is not None:
            self._cached_tokens = chunk.usage.cached_tokens
            counted = chunk.usage.completion_tokens
        if chunk.choices:
            self._piece(chunk.choices[0], counted)

    def _piece(self, choice: Choice, counted: int | None) -> None:
        tokens = choice.token_ids
        if tokens is None:
            raise ProtocolError(
                "the engine sends no token ids: its /v1/completions ignores detokenize: false"
            )
        most = self._request.sampling.logprobs
        logprobs = token_logprobs(choice, tokens, most) if tokens else None
        if tokens and not self._placed:
            if self._offer is not None:
                told = self._told_first(tokens, counted)
                if told is None:
                    return
                tokens, logprobs = tokens[told:], logprobs and logprobs[told:]
                self._books.handed_in()
            self._placed = True
            self._books.progressed(self._request.request_id)
        self._last = choice
        if choice.finish_reason is not None:
            self._tail = Tokens(self._index, tokens, logprobs)
        elif tokens:
            self._books.said(self._request.request_id, Tokens(self._index, tokens, logprobs))
            self._index += len(tokens)
            self._said = True

    def _told_first(self, tokens: list[int], counted: int | None) -> int | None:
        """Return how many of a decode's first tokens the client has already: 1, or 0 where the server leaves
        the prefill's token out, as some versions do. None: it is computed here instead."""
        assert self._offer is not None
        before = None if counted is None else counted - len(tokens)
        if before == 1:
            return 0
        if before == 0 and tokens[0] == self._offer.first_token:
            return 1
        why = "the decode side told another first token than the prefill side"
        self._compute_here(
            Lost.OTHER_TOKEN, why if before == 0 else "the decode side did not count its tokens"
        )
        return None

    def _complete(self) -> None:
        last, tail = self._last, self._tail
        if last is None or tail is None:
            self._broke("the answer ended too early")
            return
        if last.finish_reason not in ("stop", "length"):
            why = f"the engine gave the request up ({last.finish_reason})"
            self._refused(Failed(503, "engine_aborted", why, retryable=True))
            return
        self._end(self._finished(last, tail))

    def _finished(self, last: Choice, tail: Tokens) -> Finished:
        """The end, with the token that ended it named. Whether a server tells the end of sequence depends on
        its sampler: the last token counts as one only if it is known to be one."""
        stopped = last.finish_reason == "stop"
        ends = self._dialect.end_ids.union(self._request.sampling.stop_token_ids)
        stop_token = tail.tokens[-1] if stopped and tail.tokens and tail.tokens[-1] in ends else None
        return Finished(
            index=tail.index,
            tokens=tail.tokens,
            reason=FinishReason.STOP if stopped else FinishReason.LENGTH,
            stop_token=stop_token,
            cached_tokens=self._cached_tokens,
            logprobs=tail.logprobs,
        )

    def _answered(self, payload: bytes) -> None:
        """A prefill's whole answer."""
        try:
            chunk = read_chunk(payload)
            choice = chunk.choices[0] if chunk.choices else Choice()
            tokens = choice.token_ids
            if not tokens or choice.finish_reason is None:
                raise ProtocolError("the engine's answer holds no token ids")
            logprobs = token_logprobs(choice, tokens, self._request.sampling.logprobs)
        except ProtocolError as error:
            self._end(Failed(502, "engine_broken", error.message, retryable=True))
            return
        self._cached_tokens = chunk.usage.cached_tokens if chunk.usage else 0
        self._books.progressed(self._request.request_id)
        if choice.finish_reason in _GOES_ON:
            self._end(self._offered(choice, Tokens(self._index, tokens, logprobs)))
        else:
            self._end(self._finished(choice, Tokens(self._index, tokens, logprobs)))

    def _offered(self, choice: Choice, first: Tokens) -> Finished | Failed:
        """Say where the cache is; returns the end that follows."""
        told = choice.disaggregated_params
        if not told or len(first.tokens) != 1:
            why = "the engine offers no KV cache: it runs without cache_transceiver_config"
            return Failed(502, "no_kv_transfer", why, retryable=True)
        params = {name: value for name, value in told.items() if value is not None}
        params["request_type"] = GENERATION_ONLY
        if self._prefill_id is not None:
            params[ID_FIELD] = self._prefill_id
        request = self._request
        offer = msgspec.json.encode(KvOffer(params, first.tokens[0]))
        handoff = Handoff(TRANSPORT, offer, len(request.prompt) + len(request.output), early=False)
        self._books.handed_out()
        self._books.said(request.request_id, Offered(handoff, self._cached_tokens))
        return Finished(
            index=first.index,
            tokens=first.tokens,
            reason=FinishReason.HANDOFF,
            cached_tokens=self._cached_tokens,
            logprobs=first.logprobs,
        )
