"""Texts as JSON strings, those of usual tokens made once.

Exists because a token's text comes again and again, and to look it up takes a third of the time to encode
it. It must not know chunks or tokens.
"""

from __future__ import annotations

import msgspec

MAX_TEXTS = 32_768
"""Texts kept, at about 150 bytes; when there are more all are forgotten."""
_KEPT_CHARS = 32

_encode = msgspec.json.encode


class JsonTexts(dict[str, bytes]):
    """Text -> its JSON string with quotes; ``texts[text]`` is never missing."""

    def __missing__(self, text: str) -> bytes:
        encoded = _encode(text)
        if len(text) <= _KEPT_CHARS:
            if len(self) >= MAX_TEXTS:
                self.clear()
            self[text] = encoded
        return encoded
