"""Errors in OpenAI's JSON.

Exists so that a client sees one shape of error whatever went wrong. It must not know where errors come from.
"""

from __future__ import annotations

import math
import re
from typing import TypeVar

import msgspec

from tokenmill.errors import BadRequest, ServiceError, TokenmillError
from tokenmill.serve.frontend.http.messages import Response

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")
_MISSING = re.compile(r"missing required field `(?P<field>[^`]+)`")
_SERVICE_RETRY_AFTER_S = 1.0
T = TypeVar("T")
_KINDS = {404: "invalid_request_error", 405: "invalid_request_error", 408: "timeout_error"}


class ErrorBody(msgspec.Struct, frozen=True):
    """What stands under "error"."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorEnvelope(msgspec.Struct, frozen=True):
    """OpenAI's error JSON."""

    error: ErrorBody


def error_json(error: TokenmillError) -> bytes:
    """Return the error's JSON; also what a stream sends when it breaks half way."""
    return msgspec.json.encode(
        ErrorEnvelope(ErrorBody(error.message, error.kind, error.param, code_of(error)))
    )


def code_of(error: TokenmillError) -> str | None:
    """Return the error's code: its own where it has one, else its class's."""
    own = getattr(error, "own_code", None)
    return own if isinstance(own, str) else error.code


def status_of(error: TokenmillError) -> int:
    """Return the error's HTTP status: its own where it has one, else its class's."""
    own = getattr(error, "own_status", None)
    return own if isinstance(own, int) and 400 <= own < 600 else error.status


def error_response(error: TokenmillError) -> Response:
    """Return the error as an answer, with Retry-After where coming back may help."""
    status = status_of(error)
    headers: tuple[tuple[str, str], ...] = ()
    if error.retry_after_s is not None:
        headers = (("retry-after", str(max(1, math.ceil(error.retry_after_s)))),)
    elif status == ServiceError.status:
        headers = (("retry-after", str(math.ceil(_SERVICE_RETRY_AFTER_S))),)
    return Response(status, error_json(error), headers=headers)


def http_error_response(status: int, message: str) -> Response:
    """Return an error of HTTP itself, below any route."""
    kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "internal_error")
    return Response(status, msgspec.json.encode(ErrorEnvelope(ErrorBody(message, kind))))


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Return the decoded body. Raises BadRequest that names the field."""
    try:
        return decoder.decode(body)
    except msgspec.DecodeError as error:
        raise decode_error(error) from error
    except UnicodeDecodeError as error:
        raise BadRequest("the body is not valid UTF-8") from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply") from error


class ContextTooLong(BadRequest):
    """Prompt and output do not fit into the model's context."""

    code = "context_length_exceeded"


def decode_error(error: msgspec.DecodeError) -> BadRequest:
    """Return what the client should read when its body is not what the schema says."""
    text = str(error)
    if not isinstance(error, msgspec.ValidationError):
        return BadRequest(f"the body is not valid JSON: {text}")
    found = _PATH.search(text)
    param = found["path"] if found else None
    reason = text[: found.start()] if found else text
    missing = _MISSING.search(reason)
    if missing:
        param = f"{param}.{missing['field']}" if param else missing["field"]
    message = f"{param}: {reason}" if param else reason
    return BadRequest(message, param=param)
