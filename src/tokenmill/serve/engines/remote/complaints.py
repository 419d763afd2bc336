"""What a server says when it does not do something, in our words. It must not know which engine it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from tokenmill.errors import ProtocolError
from tokenmill.protocol.items import Failed

_Read = TypeVar("_Read")
_Reason = TypeVar("_Reason")

_LONGEST = 1000
"""Characters of a complaint that are passed on."""

_SHOWN_BYTES = 200
"""Of an answer that is no JSON."""


def decoded(payload: bytes, decode: Callable[[bytes], _Read]) -> _Read:
    """Return what an answer says. Raises ProtocolError."""
    try:
        return decode(payload)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the engine's answer cannot be read: {error}") from error


def failure_of(
    status: int,
    payload: bytes,
    decode: Callable[[bytes], _Read],
    error_of: Callable[[_Read, int], Failed | None],
) -> Failed:
    """Return what an answer with an error status means to the frontend."""
    text = payload[:_SHOWN_BYTES].decode(errors="replace")
    try:
        told = decode(payload)
    except msgspec.DecodeError:
        return failed(status, text)
    return error_of(told, status) or failed(status, text)


def error_in(error: dict[str, object] | str | None, message: str | None, status: int) -> Failed | None:
    """Return the error in the fields that OpenAI's API and older servers have for one, if there is one."""
    if isinstance(error, dict):
        code = error.get("code")
        words = str(error.get("message") or "no message")
        return failed(code if isinstance(code, int) else status, words)
    if error is not None or message is not None:
        return failed(status, str(error or message))
    return None


def failed(status: int, message: str) -> Failed:
    """4xx is the request's fault, but for those that say that this server is full."""
    message = message[:_LONGEST]
    if status in (408, 425, 429) or status >= 500:
        return Failed(status, "engine_overloaded" if status == 429 else "engine_failed", message, True)
    return Failed(status if status >= 400 else 500, "engine_refused", message)


def reason_in(message: str, signs: Iterable[tuple[_Reason, Iterable[str]]], otherwise: _Reason) -> _Reason:
    """Return the first reason of which one of its signs stands in a server's words."""
    lowered = message.lower()
    for reason, words in signs:
        if any(word in lowered for word in words):
            return reason
    return otherwise
