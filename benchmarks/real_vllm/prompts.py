"""Texts of a given length in tokens: known words in an order in which nobody has said them before.

Exists since routers that look at text must be given text, and all sides the same work. It must not know
where the texts go.
"""

from __future__ import annotations

import random
import string
from pathlib import Path

import tokenizers

WORDS = 5000
"""About as many as make up nearly all of what people write."""

LETTERS = (3, 9)
"""A word has so many, from and to."""


class Writer:
    """Writes texts for one model's tokenizer."""

    def __init__(self, model: Path) -> None:
        rng = random.Random("words")
        self._words = [
            "".join(rng.choices(string.ascii_lowercase, k=rng.randint(*LETTERS))) for _ in range(WORDS)
        ]
        self._tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))

    def text(self, tokens: int, seed: object) -> str:
        """A text of that many tokens, or up to a word's more; the same seed gives the same text."""
        rng = random.Random(f"{seed}")
        words: list[str] = []
        missing = tokens
        while missing > 0:
            words += rng.choices(self._words, k=max(1, missing // 6))
            missing = tokens - self.count(" ".join(words))
        return " ".join(words)

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text).ids)
