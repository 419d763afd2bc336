"""Requests to vLLM and its answers, token ids both ways. No I/O.

Read against vLLM 0.32.0 (``entrypoints/openai/completion/protocol.py``,
``entrypoints/scale_out/token_in_token_out/protocol.py``); fields that a server does not know
it ignores. The text is not read: the frontend has the tokenizer.
"""

from __future__ import annotations

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.items import Failed, TokenLogprobs
from tokenmill.serve.engines.remote import complaints

COMPLETIONS_PATH = "/v1/completions"

GENERATE_PATH = "/inference/v1/generate"
"""Tokens in, tokens out, without a word of text; servers have it with ``--enable-scale-out``."""

CONSTRAINTS = ("response_format", "structured_outputs")
"""Fields that shape the output and go to the server as the client wrote them."""

_ID = "token_id:"


class KvOffer(msgspec.Struct, frozen=True):
    """What a prefill worker hands to a decode worker: vLLM's own parameters, unread, and the first token.

    ``made_at_s``: seconds since 1970; ``lease_s``: how long the cache is kept from then on for a decode
    server that has not asked for it. The two hosts' clocks may differ by less than that.
    """

    params: dict[str, object]
    first_token: int
    made_at_s: float = 0.0
    lease_s: float = 0.0


class Usage(msgspec.Struct, frozen=True):
    """Token counts of an answer."""

    class Details(msgspec.Struct, frozen=True):
        """Of the prompt."""

        cached_tokens: int | None = None

    prompt_tokens: int = 0
    prompt_tokens_details: Details | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache; 0 where the server does not tell."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class TokenScore(msgspec.Struct, frozen=True):
    """A token's log probability as ``/inference/v1/generate`` has it."""

    token_id: int
    logprob: float
    top_logprobs: list[TokenScore] = []


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a piece; tokens are written as "token_id:17". ``content``: of the tokens' own
    route, in place of the rest."""

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None
    content: list[TokenScore] | None = None


class Choice(msgspec.Struct, frozen=True):
    """A piece of the one choice, or all of it."""

    token_ids: list[int] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: ChoiceLogprobs | None = None
    prompt_logprobs: list[dict[str, dict[str, object]] | None] | None = None


class Chunk(msgspec.Struct, frozen=True):
    """An event of a stream, or a whole answer."""

    choices: list[Choice] = []
    usage: Usage | None = None
    kv_transfer_params: dict[str, object] | None = None
    error: dict[str, object] | str | None = None
    message: str | None = None
    """Older servers put an error's text here."""


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def completion_body(
    request: GenerateRequest,
    model: str,
    *,
    stream: bool,
    max_tokens: int | None = None,
    first_token: int | None = None,
    kv_transfer_params: dict[str, object] | None = None,
) -> bytes:
    """Return the JSON of a request to ``COMPLETIONS_PATH``.

    ``max_tokens``: fewer than the request's. ``first_token``: was made elsewhere and counts as delivered.
    """
    output = request.output if first_token is None else [*request.output, first_token]
    body = _shared(request, model, stream=stream, kv_transfer_params=kv_transfer_params)
    body |= _choosing(request.sampling, len(output), max_tokens)
    body |= request.sampling.constraints
    body |= {"prompt": request.prompt + output, "return_token_ids": True}
    if request.sampling.logprobs is not None:
        body["return_tokens_as_token_ids"] = True
    return msgspec.json.encode(body)


def generate_body(
    request: GenerateRequest,
    model: str,
    *,
    stream: bool,
    max_tokens: int | None = None,
    first_token: int | None = None,
    kv_transfer_params: dict[str, object] | None = None,
) -> bytes:
    """Return the JSON of a request to ``GENERATE_PATH``; arguments as those of ``completion_body``."""
    output = request.output if first_token is None else [*request.output, first_token]
    body = _shared(request, model, stream=stream, kv_transfer_params=kv_transfer_params)
    choosing = _choosing(request.sampling, len(output), max_tokens)
    body |= {"token_ids": request.prompt + output, "sampling_params": {**choosing, "detokenize": False}}
    return msgspec.json.encode(body)


def speaks_tokens(request: GenerateRequest) -> bool:
    """Whether ``GENERATE_PATH`` can take it: fields that a client wrote in OpenAI's words it cannot."""
    return not request.sampling.constraints


def _shared(
    request: GenerateRequest, model: str, *, stream: bool, kv_transfer_params: dict[str, object] | None
) -> dict[str, object]:
    body: dict[str, object] = {"model": model, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True}
    if request.cache_salt:
        body["cache_salt"] = request.cache_salt
    if kv_transfer_params is not None:
        body["kv_transfer_params"] = kv_transfer_params
    return body


def _choosing(sampling: Sampling, done: int, max_tokens: int | None) -> dict[str, object]:
    """Return how tokens are chosen after ``done`` ones; 1 to ``max_tokens`` of them."""
    most = max_tokens or max(1, sampling.max_tokens - done)
    fields: dict[str, object] = {
        "max_tokens": most,
        "min_tokens": min(most, max(0, sampling.min_tokens - done)),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos,
        "seed": sampling.seed,
    }
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.stop_token_ids:
        fields["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.logprobs is not None:
        fields["logprobs"] = sampling.logprobs
    if sampling.prompt_logprobs is not None:
        fields["prompt_logprobs"] = sampling.prompt_logprobs
    return fields


def read_chunk(payload: bytes) -> Chunk:
    """Return an event or an answer. Raises ProtocolError."""
    return complaints.decoded(payload, _decode_chunk)


def token_logprobs(choice: Choice, most: int | None) -> list[TokenLogprobs] | None:
    """Return a piece's log probabilities, one entry a token. ``most``: alternatives that were asked for; vLLM
    adds the chosen token where it is not among them. Raises ProtocolError.
    """
    raw = choice.logprobs
    if raw is None:
        return None
    if raw.content is not None:
        scored = [_score(each, most) for each in raw.content]
    else:
        top = raw.top_logprobs or [None] * len(raw.tokens)
        scored = [
            TokenLogprobs(logprob if logprob is not None else 0.0, _ranked(alternatives)[:most])
            for logprob, alternatives in zip(raw.token_logprobs, top, strict=False)
        ]
    if len(scored) != len(choice.token_ids or []):
        raise ProtocolError("the engine sent log probabilities for another number of tokens than it sent")
    return scored


def prompt_logprobs(choice: Choice, prompt: list[int], most: int) -> list[TokenLogprobs | None]:
    """Return the prompt's log probabilities, the first None. ``most``: alternatives that were asked for."""
    raw = choice.prompt_logprobs or []
    scores: list[TokenLogprobs | None] = []
    for token, entry in zip(prompt, raw, strict=False):
        if entry is None:
            scores.append(None)
            continue
        known = {int(name): _number(facts.get("logprob")) for name, facts in entry.items()}
        ranked = sorted(known.items(), key=lambda item: -item[1])
        scores.append(TokenLogprobs(known.get(token, 0.0), ranked[:most]))
    return scores


def failure_of(status: int, payload: bytes) -> Failed:
    """Return what an answer with an error status means to the frontend."""
    return complaints.failure_of(status, payload, _decode_chunk, error_of)


def error_of(chunk: Chunk, status: int = 500) -> Failed | None:
    """Return the error that an event or answer carries, if it does."""
    return complaints.error_in(chunk.error, chunk.message, status)


def _ranked(alternatives: dict[str, float] | None) -> list[tuple[int, float]]:
    if not alternatives:
        return []
    known = [(int(name.removeprefix(_ID)), value) for name, value in alternatives.items()]
    return sorted(known, key=lambda item: -item[1])


def _score(score: TokenScore, most: int | None) -> TokenLogprobs:
    known = {each.token_id: each.logprob for each in score.top_logprobs}
    ranked = sorted(known.items(), key=lambda item: -item[1])
    return TokenLogprobs(score.logprob, ranked[:most])


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
