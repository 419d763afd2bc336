"""Requests to ``trtllm-serve``'s ``/v1/completions`` and back, token ids both ways. No I/O.

Read against TensorRT-LLM's public source (``serve/openai_protocol.py``, ``serve/postprocess_handlers.py``). A
server refuses fields that it does not know, so that only what differs from its defaults is sent. Token ids
come back with ``detokenize: false``. The text is not read: the frontend has the tokenizer.
"""

from __future__ import annotations

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.generate import GenerateRequest, Sampling
from tokenmill.protocol.items import Failed, TokenLogprobs
from tokenmill.serve.engines.remote import complaints

TRANSPORT = "trtllm"
"""Name of the handoff between two TensorRT-LLM workers, whichever cache transceiver they use."""

CONTEXT_ONLY = "context_only"
GENERATION_ONLY = "generation_only"

ID_FIELD = "disagg_request_id"
"""Where newer servers take a handoff's id from whoever brings the two sides together."""

Params = dict[str, object]
"""A server's own ``disaggregated_params``, carried on unread but for the first token."""


class KvOffer(msgspec.Struct, frozen=True):
    """What a prefill worker hands to a decode worker: the server's own parameters and the first token."""

    params: Params
    first_token: int


class Usage(msgspec.Struct, frozen=True):
    """Token counts of an answer, or so far."""

    class Details(msgspec.Struct, frozen=True):
        """Of the prompt."""

        cached_tokens: int | None = None

    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: Details | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the prefix cache; 0 where the server does not tell."""
        return (self.prompt_tokens_details and self.prompt_tokens_details.cached_tokens) or 0


class ChoiceLogprobs(msgspec.Struct, frozen=True):
    """Log probabilities of a piece. Alternatives are named by their text, which tells no token id."""

    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []


class Choice(msgspec.Struct, frozen=True):
    """A piece of the one choice, or all of it."""

    token_ids: list[int] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: ChoiceLogprobs | None = None
    disaggregated_params: Params | None = None


class Chunk(msgspec.Struct, frozen=True):
    """An event of a stream, or a whole answer."""

    choices: list[Choice] = []
    usage: Usage | None = None
    error: dict[str, object] | str | None = None
    message: str | None = None
    """An error's text, where the answer is a whole one."""


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def completion_body(
    request: GenerateRequest,
    model: str,
    *,
    stream: bool,
    first_token: int | None = None,
    params: Params | None = None,
) -> dict[str, object]:
    """Return the fields of a completion request.

    ``first_token``: was made elsewhere and counts as delivered. ``params``: for prefill or decode alone. With
    those of a decode every piece carries its token counts, by which the told first token is found or missed.
    """
    output = request.output if first_token is None else [*request.output, first_token]
    done = len(output)
    sampling = request.sampling
    body: dict[str, object] = {
        "model": model,
        "prompt": request.prompt + output,
        "max_tokens": max(1, sampling.max_tokens - done),
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "detokenize": False,
        "stream": stream,
    }
    body |= {name: value for name, (value, default) in _fields(sampling, done).items() if value != default}
    if stream:
        counted: dict[str, object] = {"continuous_usage_stats": True} if params is not None else {}
        body["stream_options"] = {"include_usage": True, **counted}
    if request.cache_salt:
        body["cache_salt"] = request.cache_salt
    if params is not None:
        body["disaggregated_params"] = params
    return body | _lists(sampling)


def _lists(sampling: Sampling) -> dict[str, object]:
    """Fields that are there or not."""
    fields: dict[str, object] = {}
    if sampling.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.stop_token_ids:
        fields["stop_token_ids"] = list(sampling.stop_token_ids)
        fields["include_stop_str_in_output"] = True  # else the token that ended it is cut off
    if sampling.logprobs is not None:
        fields["logprobs"] = max(1, sampling.logprobs)
    return fields


def _fields(sampling: Sampling, done: int) -> dict[str, tuple[object, object]]:
    """Fields whose defaults need not be sent, each with its default."""
    return {
        "min_tokens": (max(0, sampling.min_tokens - done), 0),
        "top_k": (sampling.top_k, 0),
        "top_p": (sampling.top_p, 1.0),
        "min_p": (sampling.min_p, 0.0),
        "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0),
        "repetition_penalty": (sampling.repetition_penalty, 1.0),
        "ignore_eos": (sampling.ignore_eos, False),
    }


def read_chunk(payload: bytes) -> Chunk:
    """Return an event or an answer. Raises ProtocolError."""
    return complaints.decoded(payload, _decode_chunk)


def token_logprobs(choice: Choice, tokens: list[int], most: int | None) -> list[TokenLogprobs] | None:
    """Return a piece's log probabilities, one entry a token. ``most``: alternatives that were asked for; of
    these the chosen token alone is known by its id, and is told where it is the best. Raises ProtocolError.
    """
    raw = choice.logprobs
    if raw is None or most is None:
        return None
    if len(raw.token_logprobs) != len(tokens):
        raise ProtocolError("the engine sent log probabilities for another number of tokens than it sent")
    tops = raw.top_logprobs or [None] * len(tokens)
    return [
        _scored(token, logprob or 0.0, alternatives, most)
        for token, logprob, alternatives in zip(tokens, raw.token_logprobs, tops, strict=False)
    ]


def _scored(token: int, logprob: float, others: dict[str, float] | None, most: int) -> TokenLogprobs:
    best = most > 0 and others and logprob >= max(others.values())
    return TokenLogprobs(logprob, [(token, logprob)] if best else [])


def failure_of(status: int, payload: bytes) -> Failed:
    """Return what an answer with an error status means to the frontend."""
    return complaints.failure_of(status, payload, _decode_chunk, error_of)


def error_of(chunk: Chunk, status: int = 500) -> Failed | None:
    """Return the error that an event or answer carries, if it does."""
    return complaints.error_in(chunk.error, chunk.message, status)
