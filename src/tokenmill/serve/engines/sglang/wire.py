"""Requests to SGLang's ``/generate`` and back, token ids both ways. No I/O.

Read against SGLang 0.5.23 (``managers/io_struct.py``, ``sampling/sampling_params.py``, ``api/v1``); fields
that a server does not know it ignores, but for those of ``sampling_params``. The text is not read: the
frontend has the tokenizer.
"""

from __future__ import annotations

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.generate import GenerateRequest
from tokenmill.protocol.items import Failed, TokenLogprobs
from tokenmill.serve.engines.remote import complaints
from tokenmill.serve.engines.sglang.constraints import grammar_params

TRANSPORT = "sglang"
"""Name of the handoff between two SGLang workers, whichever transfer backend they use."""

NOBODY = "2.2.2.2"
"""The bootstrap host by which a prefill server computes a prompt and hands it to nobody; SGLang's own health
checks use it."""

HANDOFF_FAILED = "handoff_failed"
"""Code of a ``Failed`` that says that a pair of servers did not come together."""

_OFF = -1
_SEED_MASK = 2**63 - 1


class Pairing(msgspec.Struct, frozen=True):
    """What both servers of a pair are told, so that they find each other. ``host``, ``port``: of the prefill
    side's bootstrap server. ``room``: this request's, above 0."""

    host: str
    port: int
    room: int


LogprobEntry = tuple[float | None, int, str | None]
"""Log probability (None for a prompt's first token), token id, text."""


class FinishedBecause(msgspec.Struct, frozen=True):
    """``type``: stop, length or abort. ``matched``: the token id or string that stopped it."""

    type: str = ""
    matched: int | str | list[int] | None = None
    message: str | None = None
    status_code: int | None = None


class MetaInfo(msgspec.Struct, frozen=True):
    """What a piece says beside its tokens. ``completion_tokens``: all so far, this piece's included.

    The logprobs are of this piece or of all so far, as the ids are; the last ones are this piece's.
    """

    finish_reason: FinishedBecause | None = None
    completion_tokens: int = 0
    cached_tokens: int = 0
    output_token_logprobs: list[LogprobEntry] | None = None
    output_top_logprobs: list[list[LogprobEntry] | None] | None = None
    input_token_logprobs: list[LogprobEntry] | None = None
    input_top_logprobs: list[list[LogprobEntry] | None] | None = None


class Chunk(msgspec.Struct, frozen=True):
    """An event of a stream, or a whole answer."""

    output_ids: list[int] | None = None
    meta_info: MetaInfo = MetaInfo()
    error: dict[str, object] | str | None = None
    message: str | None = None
    """Where FastAPI's errors have their text."""
    code: int | None = None


_decode_chunk = msgspec.json.Decoder(Chunk).decode


def generate_body(
    request: GenerateRequest,
    rid: str,
    *,
    stream: bool,
    pairing: Pairing | None = None,
    scores_of_prompt: bool = False,
    rank: int | None = None,
) -> bytes:
    """Return the JSON of a generate request. ``scores_of_prompt``: ask for the prompt's log probabilities.
    ``rank``: the data-parallel rank that is to serve it; None: the server chooses. Raises BadRequest.
    """
    sampling = request.sampling
    done = len(request.output)
    body: dict[str, object] = {
        "rid": rid,
        "input_ids": request.prompt + request.output,
        "sampling_params": _sampling_params(request, done),
        "stream": stream,
    }
    if sampling.logprobs is not None or scores_of_prompt:
        body["return_logprob"] = True
        body["top_logprobs_num"] = max(sampling.logprobs or 0, sampling.prompt_logprobs or 0)
        if scores_of_prompt:
            body["logprob_start_len"] = 0
    if request.cache_salt:
        # Servers that do not know the first keep tenants apart by the second.
        body["cache_salt"] = body["extra_key"] = request.cache_salt
    if rank is not None:
        body["routed_dp_rank"] = rank
    if pairing is not None:
        body["bootstrap_host"] = pairing.host
        body["bootstrap_port"] = pairing.port
        body["bootstrap_room"] = pairing.room
    return msgspec.json.encode(body)


def _sampling_params(request: GenerateRequest, done: int) -> dict[str, object]:
    sampling = request.sampling
    params: dict[str, object] = {
        "max_new_tokens": max(1, sampling.max_tokens - done),
        "min_new_tokens": max(0, sampling.min_tokens - done),
        "temperature": sampling.temperature,
        "top_k": sampling.top_k or _OFF,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repetition_penalty": sampling.repetition_penalty,
        "ignore_eos": sampling.ignore_eos,
        "sampling_seed": sampling.seed & _SEED_MASK,
        "skip_special_tokens": False,
    }
    if sampling.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if sampling.stop_token_ids:
        params["stop_token_ids"] = list(sampling.stop_token_ids)
    if sampling.constraints:
        params |= grammar_params(sampling.constraints)
    return params


def read_chunk(payload: bytes) -> Chunk:
    """Return an event or an answer. Raises ProtocolError."""
    return complaints.decoded(payload, _decode_chunk)


def new_tokens(chunk: Chunk, seen: int) -> list[int]:
    """Return the tokens of a piece that come after the first ``seen``, whether the server sends what is new
    or all so far. Raises ProtocolError for a gap.
    """
    if chunk.output_ids is None:
        raise ProtocolError("the engine sends no token ids; it needs SGLang 0.5.0 or newer")
    fresh = chunk.meta_info.completion_tokens - seen
    if fresh > len(chunk.output_ids):
        raise ProtocolError(f"the engine skipped tokens: {fresh} are new, {len(chunk.output_ids)} came")
    return chunk.output_ids[-fresh:] if fresh > 0 else []


def token_logprobs(meta: MetaInfo, count: int, most: int | None) -> list[TokenLogprobs] | None:
    """Return the log probabilities of a piece's last ``count`` tokens. ``most``: alternatives that were asked
    for; None: none were. Raises ProtocolError.
    """
    if most is None or not count:
        return None
    raw = meta.output_token_logprobs or []
    top: list[list[LogprobEntry] | None] = meta.output_top_logprobs or [None] * len(raw)
    if len(raw) < count or len(top) != len(raw):
        raise ProtocolError("the engine sent log probabilities for another number of tokens than it sent")
    return [_scored(entry, best, most) for entry, best in zip(raw[-count:], top[-count:], strict=True)]


def prompt_logprobs(meta: MetaInfo, prompt_tokens: int, most: int) -> list[TokenLogprobs | None]:
    """Return the prompt's log probabilities, the first None. ``most``: alternatives that were asked for.
    Raises ProtocolError.
    """
    raw = (meta.input_token_logprobs or [])[:prompt_tokens]
    top = (meta.input_top_logprobs or [None] * len(raw))[:prompt_tokens]
    if len(raw) != prompt_tokens or len(top) != prompt_tokens:
        raise ProtocolError(f"the engine scored {len(raw)} of {prompt_tokens} prompt tokens")
    scored: list[TokenLogprobs | None] = [None]
    scored += [_scored(entry, best, most) for entry, best in zip(raw[1:], top[1:], strict=True)]
    return scored


def failure_of(status: int, payload: bytes) -> Failed:
    """Return what an answer with an error status means to the frontend."""
    return complaints.failure_of(status, payload, _decode_chunk, error_of)


def error_of(chunk: Chunk, status: int = 500) -> Failed | None:
    """Return the error that an answer or event carries, if it does."""
    ended = chunk.meta_info.finish_reason
    if ended is not None and ended.type == "abort":
        return complaints.failed(ended.status_code or 503, ended.message or "the engine gave the request up")
    return complaints.error_in(chunk.error, chunk.message, chunk.code or status)


def _scored(entry: LogprobEntry, best: list[LogprobEntry] | None, most: int) -> TokenLogprobs:
    ranked = sorted(((token, logprob) for logprob, token, _ in best or [] if logprob is not None), key=_worst)
    return TokenLogprobs(entry[0] if entry[0] is not None else 0.0, ranked[:most])


def _worst(scored: tuple[int, float]) -> float:
    return -scored[1]
