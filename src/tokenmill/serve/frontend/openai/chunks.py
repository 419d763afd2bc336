"""Streamed answers in OpenAI's JSON, as server-sent events.

Exists because this is what every token costs: what does not change from chunk to chunk is encoded once, and a
plain chunk costs one look-up and its share of one concatenation. It must not know where tokens come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.frontend.openai.json_texts import JsonTexts
from tokenmill.serve.frontend.openai.logprobs import CompletionLogprobs, TokenNames, chat_logprobs
from tokenmill.serve.frontend.openai.usage import Usage

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.encode


def event(payload: bytes) -> bytes:
    """Return one server-sent event."""
    return b"data: %b\n\n" % payload


class _Chunks:
    """What both APIs share. A chunk is ``{<constants>,"choices":[<choice>]<usage>}``."""

    plain = False
    """Chunks carry text alone, so that ``texts`` writes them."""

    def __init__(
        self,
        kind: str,
        answer_id: str,
        created_s: int,
        model: str,
        *,
        include_usage: bool,
        json_texts: JsonTexts | None,
    ) -> None:
        constants = _encode({"id": answer_id, "object": kind, "created": created_s, "model": model})
        self._constants = b"data: " + constants[:-1]
        self.include_usage = include_usage
        self._close = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        self._json = JsonTexts() if json_texts is None else json_texts
        self._frames: list[tuple[bytes, bytes, bytes]] = []

    def _set_frames(self, choices: int, before: bytes, behind: bytes) -> None:
        """Say what stands around the text in a plain chunk; ``before`` has a place for the choice."""
        tail = behind + self._close
        for index in range(choices):
            head = self._constants + before % index
            self._frames.append((head, tail + head, tail))

    def texts(self, index: int, texts: Sequence[str]) -> bytes:
        """Return a chunk for each text that is not empty; for chunks that are ``plain``."""
        head, between, tail = self._frames[index]
        if len(texts) == 1:
            text = texts[0]
            return head + self._json[text] + tail if text else b""
        encoded = between.join([self._json[text] for text in texts if text])
        return head + encoded + tail if encoded else b""

    def _choice(self, choice: dict[str, Any], **extra: Any) -> bytes:
        further = b"," + _encode(extra)[1:-1] if extra else b""
        return self._constants + further + b',"choices":[' + _encode(choice) + b"]" + self._close

    def usage(self, usage: Usage) -> bytes:
        """Return the last chunk: no choices, the usage of the whole request."""
        return self._constants + b',"choices":[],"usage":' + _encode(usage) + b"}\n\n"


class ChatChunks(_Chunks):
    """Chunks of a chat. ``top_logprobs`` None: no log probabilities."""

    def __init__(
        self,
        answer_id: str,
        created_s: int,
        model: str,
        *,
        choices: int,
        include_usage: bool,
        names: TokenNames,
        top_logprobs: int | None = None,
        prompt_token_ids: list[int] | None = None,
        json_texts: JsonTexts | None = None,
    ) -> None:
        super().__init__(
            "chat.completion.chunk",
            answer_id,
            created_s,
            model,
            include_usage=include_usage,
            json_texts=json_texts,
        )
        self._names = names
        self._top = top_logprobs
        self._prompt_token_ids = prompt_token_ids
        self.plain = top_logprobs is None and prompt_token_ids is None
        before, behind = (
            b',"choices":[{"index":%d,"delta":{"content":',
            b'},"logprobs":null,"finish_reason":null}]',
        )
        self._set_frames(choices, before, behind)

    def opening(self, index: int, prompt_logprobs: Sequence[TokenLogprobs | None] | None = None) -> bytes:  # noqa: ARG002
        """Return the chunk that names the role."""
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        if self._prompt_token_ids is not None:
            return self._choice(choice, prompt_token_ids=self._prompt_token_ids)
        return self._choice(choice)

    def delta(
        self, index: int, text: str, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> bytes:
        """Return the chunk for new tokens; empty where there is nothing to tell yet."""
        if self.plain:
            return self.texts(index, (text,))
        if not text and not tokens:
            return b""
        return self._told(index, {"content": text}, tokens, logprobs)

    def _told(
        self,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[int],
        logprobs: Sequence[TokenLogprobs] | None,
    ) -> bytes:
        """Return a chunk with all that is asked for of its tokens."""
        choice: dict[str, Any] = {
            "index": index,
            "delta": delta,
            "logprobs": None
            if self._top is None
            else chat_logprobs(self._names, tokens, logprobs or (), self._top),
            "finish_reason": None,
        }
        if self._prompt_token_ids is not None:
            choice["token_ids"] = tokens
        return self._choice(choice)

    def closing(self, index: int, reason: str) -> bytes:
        """Return the chunk that names the finish reason."""
        return self._choice({"index": index, "delta": {}, "logprobs": None, "finish_reason": reason})


class CompletionChunks(_Chunks):
    """Chunks of completions. ``echoes``: by choice, the prompt's text and ids where it is sent back;
    ``prompt_token_ids``: by choice, where token ids are wanted."""

    def __init__(
        self,
        answer_id: str,
        created_s: int,
        model: str,
        *,
        choices: int,
        include_usage: bool,
        names: TokenNames,
        top_logprobs: int | None = None,
        echoes: Sequence[tuple[str, list[int]]] | None = None,
        prompt_token_ids: Sequence[list[int]] | None = None,
        json_texts: JsonTexts | None = None,
    ) -> None:
        super().__init__(
            "text_completion",
            answer_id,
            created_s,
            model,
            include_usage=include_usage,
            json_texts=json_texts,
        )
        self._echoes = echoes
        self._prompt_token_ids = prompt_token_ids
        self._logprobs = (
            None
            if top_logprobs is None
            else [CompletionLogprobs(names, top_logprobs) for _ in range(choices)]
        )
        self.plain = top_logprobs is None and prompt_token_ids is None
        before, behind = b',"choices":[{"index":%d,"text":', b',"logprobs":null,"finish_reason":null}]'
        self._set_frames(choices, before, behind)

    def opening(self, index: int, prompt_logprobs: Sequence[TokenLogprobs | None] | None = None) -> bytes:
        """Return the chunk with the prompt, where it is sent back."""
        if self._echoes is None and self._prompt_token_ids is None:
            return b""
        text, ids = self._echoes[index] if self._echoes is not None else ("", [])
        logprobs = None
        if self._logprobs is not None and self._echoes is not None:
            logprobs = self._logprobs[index].take(ids, prompt_logprobs or ())
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}
        if self._prompt_token_ids is not None:
            choice["prompt_token_ids"] = self._prompt_token_ids[index]
        return self._choice(choice)

    def delta(
        self, index: int, text: str, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> bytes:
        """Return the chunk for new tokens; empty where there is nothing to tell yet."""
        if self.plain:
            return self.texts(index, (text,))
        if not text and not tokens:
            return b""
        scores = None if self._logprobs is None else self._logprobs[index].take(tokens, logprobs or ())
        choice: dict[str, Any] = {"index": index, "text": text, "logprobs": scores, "finish_reason": None}
        if self._prompt_token_ids is not None:
            choice["token_ids"] = tokens
        return self._choice(choice)

    def closing(self, index: int, reason: str) -> bytes:
        """Return the chunk that names the finish reason."""
        return self._choice({"index": index, "text": "", "logprobs": None, "finish_reason": reason})
