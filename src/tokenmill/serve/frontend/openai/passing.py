"""Requests and answers that pass through as text, in OpenAI's JSON: what is ours around what is not.

Exists so that a client's fields and a server's choices stay as they are, whatever they hold: tools, images,
structured outputs, reasoning. It must not know workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from tokenmill.errors import BadRequest
from tokenmill.protocol.block_hashes import TOKEN_BYTES
from tokenmill.protocol.text import TextRequest, TextUsage
from tokenmill.serve.frontend.openai.chunks import event
from tokenmill.serve.frontend.openai.errors import decode_body
from tokenmill.serve.frontend.openai.sampling import MAX_CHOICES, check_range, choices_of, shown
from tokenmill.serve.frontend.openai.schema import ChatRequest, CompletionRequest

OURS: Final = frozenset({"model", "stream", "stream_options", "priority"})
"""Fields that are answered here or written anew."""

MAX_PACKED_BYTES: Final = 64 * 1024
"""So much of a prompt tells it from others well enough to route by."""

_encode = msgspec.json.encode


def to_text_request(
    body: ChatRequest | CompletionRequest, raw: bytes, model: str, *, most_output: int
) -> TextRequest:
    """Return what a text engine is asked. ``raw``: the client's body; ``model``: as the server calls it,
    empty: the worker's own; ``most_output``: most tokens that a client may ask for, 0: any. Raises
    BadRequest.
    """
    fields = decode_body(msgspec.json.Decoder(dict[str, msgspec.Raw]), raw)
    kept = {name: value for name, value in fields.items() if name not in OURS}
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options is only allowed when stream is true", param="stream_options")
    choices_of(body, _prompts(body))  # too many are refused here
    if most_output:
        kept |= _limited(body, most_output)
    encoded = _encode(kept)
    return TextRequest(
        path="chat/completions" if isinstance(body, ChatRequest) else "completions",
        fields=encoded,
        model=model,
        stream=bool(body.stream),
        tokens=max(1, len(encoded) // TOKEN_BYTES),
    )


def packed_prompt(body: ChatRequest | CompletionRequest) -> bytes:
    """Return the prompt's head as if it were token ids: four bytes of text, which are about a token, for one.
    Prompts that begin alike give ids that begin alike."""
    prompt = body.messages if isinstance(body, ChatRequest) else body.prompt
    data = _encode(prompt)[:MAX_PACKED_BYTES]
    return data + b" " * (-len(data) % TOKEN_BYTES)


def _prompts(body: ChatRequest | CompletionRequest) -> int:
    """How many prompts there are: a list of numbers is one prompt."""
    prompt = "" if isinstance(body, ChatRequest) else body.prompt
    if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int):
        return 1
    if len(prompt) > MAX_CHOICES:
        raise BadRequest(f"prompt: at most {MAX_CHOICES} prompts, got {len(prompt)}", param="prompt")
    return len(prompt)


def _limited(body: ChatRequest | CompletionRequest, most: int) -> dict[str, msgspec.Raw]:
    """Return the field that limits the output, where the client names none. Raises BadRequest for too
    much."""
    name, asked = "max_tokens", body.max_tokens
    if isinstance(body, ChatRequest) and body.max_completion_tokens is not None:
        name, asked = "max_completion_tokens", body.max_completion_tokens
    check_range(name, asked, 0, (1 << 31) - 1)
    if asked is None:
        return {name: msgspec.Raw(b"%d" % most)}
    if asked > most:
        raise BadRequest(f"{name} is {shown(asked)}; this server makes at most {most} tokens", param=name)
    return {}


class PassedOn:
    """An answer whose choices are a server's own JSON; ``name``: the model's, as the client calls it."""

    def __init__(
        self, *, chat: bool, answer_id: str, created_s: int, name: str, stream: bool, include_usage: bool
    ) -> None:
        kind = "chat.completion" if chat else "text_completion"
        if chat and stream:
            kind += ".chunk"
        head = _encode({"id": answer_id, "object": kind, "created": created_s, "model": name})
        self._before = head[:-1] + b',"choices":'
        self._include_usage = include_usage
        self._after = b',"usage":null}' if include_usage else b"}"

    def events(self, pieces: Sequence[bytes]) -> bytes:
        """Return a server-sent event for each piece, a JSON array of choices."""
        return b"".join([event(self._before + piece + self._after) for piece in pieces])

    def usage(self, usage: TextUsage | None) -> bytes:
        """Return the event with the usage, where it was asked for and is known."""
        if not self._include_usage or usage is None:
            return b""
        return event(self._before + b'[],"usage":' + usage.told + b"}")

    def whole(self, choices: bytes, usage: TextUsage | None) -> bytes:
        """Return the body of an answer that is not streamed."""
        return self._before + choices + b',"usage":' + (usage.told if usage is not None else b"null") + b"}"
