"""OpenAI's API as its many servers speak it, read leniently. No I/O.

Choices are carried unread but for what tells whether an answer is complete. Read against OpenAI's reference
and the servers of vLLM 0.32, llama.cpp and Ollama; a field that a server leaves out is taken for unknown.
"""

from __future__ import annotations

from typing import Final

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.items import Failed
from tokenmill.protocol.text import TextRequest, TextUsage
from tokenmill.serve.engines.remote.breaker import Outcome

"""What a stream's last event holds."""

_SHOWN: Final = 300


class ModelCard(msgspec.Struct, frozen=True):
    """One model of a list. ``max_model_len``: vLLM's and Tokenmill's; ``meta``: llama.cpp's."""

    id: str
    max_model_len: int | None = None
    meta: dict[str, object] | None = None

    @property
    def context_tokens(self) -> int:
        """Prompt plus output; 0: the server does not say."""
        trained = (self.meta or {}).get("n_ctx_train")
        return self.max_model_len or (trained if isinstance(trained, int) else 0)


class _ModelList(msgspec.Struct, frozen=True):
    data: list[ModelCard] | None = None


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Choice(msgspec.Struct, frozen=True):
    index: int = 0
    finish_reason: str | None = None


class _Answer(msgspec.Struct, frozen=True):
    """An event of a stream, or a whole answer."""

    choices: msgspec.Raw = msgspec.Raw(b"[]")
    usage: msgspec.Raw = msgspec.Raw(b"null")
    error: msgspec.Raw = msgspec.Raw(b"null")


class _Error(msgspec.Struct, frozen=True):
    message: str | None = None
    code: int | str | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode
_decode_choices = msgspec.json.Decoder(list[_Choice] | None).decode
_decode_usage = msgspec.json.Decoder(_Usage | None).decode


class Piece(msgspec.Struct, frozen=True):
    """What an event holds. ``choices``: their JSON array, empty for none. ``begun`` and ``ended``: of which
    choices it has a part, and which of them it ends, with the reason."""

    choices: bytes
    begun: tuple[int, ...]
    ended: dict[int, str]
    usage: TextUsage | None
    failure: Failed | None


def request_body(request: TextRequest, model: str) -> bytes:
    """Return the JSON of a request: the client's own fields behind ours."""
    ours: dict[str, object] = {"model": model, "stream": request.stream}
    if request.stream:
        ours["stream_options"] = {"include_usage": True}
    head = msgspec.json.encode(ours)
    return head[:-1] + b"," + request.fields[1:] if len(request.fields) > 2 else head


def read_models(payload: bytes) -> list[ModelCard]:
    """Return the models of a list. Raises ProtocolError."""
    try:
        return msgspec.json.decode(payload, type=_ModelList).data or []
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the server's list of models cannot be read: {error}") from error


def read_piece(payload: bytes) -> Piece:
    """Return what an event or an answer holds. Raises ProtocolError."""
    try:
        answer = _decode_answer(payload)
        choices = _decode_choices(answer.choices) or []
        usage = _decode_usage(answer.usage)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"the server's answer cannot be read: {error}") from error
    return Piece(
        bytes(answer.choices) if choices else b"",
        tuple(choice.index for choice in choices),
        {choice.index: choice.finish_reason for choice in choices if choice.finish_reason},
        None if usage is None else _usage(usage, bytes(answer.usage)),
        None if bytes(answer.error) == b"null" else _failure(bytes(answer.error), 500),
    )


def failure_of(status: int, payload: bytes) -> Failed:
    """Return what an answer with an error status means to the frontend."""
    try:
        error = bytes(_decode_answer(payload).error)
    except (msgspec.DecodeError, UnicodeDecodeError):
        error = b"null"
    return _failure(payload if error == b"null" else error, status)


def outcome_of(status: int) -> Outcome:
    """Return what an answer with that status says of its server: a refused request is no failure, a refused
    key is one that only its owner can mend."""
    if status == 429:
        return Outcome.NEITHER
    return Outcome.BAD if status >= 500 or status in (401, 403, 408) else Outcome.GOOD


def _failure(error: bytes, status: int) -> Failed:
    message, code = _told(error)
    if isinstance(code, int) and 400 <= code < 600:
        status = code
    if status in (401, 403):
        return Failed(502, "upstream_unauthorized", f"the server behind refuses our key: {message}", True)
    if status == 404:
        return Failed(502, "upstream_not_found", f"the server behind does not know it: {message}", True)
    if status == 429:
        return Failed(429, "upstream_overloaded", message, True)
    if status >= 500 or status == 408:
        return Failed(502, "upstream_failed", message, True)
    return Failed(status if 400 <= status < 500 else 502, "upstream_refused", message)


def _told(error: bytes) -> tuple[str, int | str | None]:
    """Return an error's message and code: of an object, of a text in JSON, or of whatever it is."""
    try:
        said = msgspec.json.decode(error, type=_Error | str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return error[:_SHOWN].decode(errors="replace") or "no message", None
    if isinstance(said, str):
        return said[:_SHOWN], None
    return (said.message or error.decode(errors="replace"))[:_SHOWN], said.code


def _usage(usage: _Usage, told: bytes) -> TextUsage:
    details = usage.prompt_tokens_details
    return TextUsage(
        usage.prompt_tokens or 0,
        (details.cached_tokens or 0) if details is not None else 0,
        usage.completion_tokens or 0,
        told,
    )
