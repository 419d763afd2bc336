"""Byte-level BPE by words that were seen before.

Exists because most words of a prompt have been encoded a moment ago: a pre-tokenizer cuts a text into words
that the model encodes each by itself, so that a word's ids can be kept. About ten times as fast as the
whole pipeline, for ASCII texts and the pipelines that nearly all checkpoints have. It must not know special
tokens or requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain

import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tokenmill.protocol.block_hashes import pack_tokens
from tokenmill.serve.text.ascii_pattern import UnknownPattern, translate
from tokenmill.serve.text.stages import Stage, stage_of, stages_of

MAX_WORDS = 16_384
"""Words kept, twice: the present ones and those before. About 200 bytes each."""
MAX_KEPT_CHARS = 32
"""Longer words are not kept: they do not come again."""
MAX_WORD_CHARS = 512
"""Texts with longer words are left to the whole pipeline: BPE takes more than linear time for a word."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_IDENTITIES = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
"""Normalizers that leave ASCII as it is."""
_PROBES = (
    "The quick brown fox's 12345 jumps;  they'll (re)do it!\n\n  x = {'a': [1, 2.5e-3]}\t\r\n",
    "HTTPServer fooBar I'M WE'VE 3rd $5.00/ --flag=\"v\" \\n \x0b\x0c\x1c ~ \n a\n\n\nb   ",
    "a  b\t\tc \n d\n \n'll'sT'S 0 00 000 0000 /*...*/ #!/bin/sh\r\r\n\n_x__y_ @@ -1 +1 @@",
)


class WordEncoder:
    """Encodes ASCII texts that hold no added token. Safe to call from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer, patterns: Sequence[re.Pattern[str]]) -> None:
        self._model = backend.model
        self._find = patterns[-1].findall
        *self._first, self._last = [re.compile(f"({each.pattern})", re.ASCII).split for each in patterns]
        self._words = _Words(self._encode_word)
        alphabet = ByteLevel(add_prefix_space=False, use_regex=False)
        self._letters = {at: alphabet.pre_tokenize_str(chr(at))[0][0] for at in range(128)}

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer) -> WordEncoder | None:
        """Return an encoder that agrees with ``backend``, or None where that is not certain."""
        model = backend.model
        if not isinstance(model, BPE) or model.dropout or not _leaves_ascii(stage_of(backend.normalizer)):
            return None
        try:
            patterns = _patterns(stage_of(backend.pre_tokenizer))
        except UnknownPattern:
            return None
        encoder = cls(backend, patterns) if patterns else None
        return encoder if encoder is not None and encoder.agrees(backend) else None

    def encode(self, text: str, most_new: int) -> bytes | None:
        """Return the ids of ``text`` (ASCII), packed; None where a word is very long, or more than
        ``most_new`` words were not seen before, at about 3 us each: cases for the whole pipeline."""
        self._words.left = most_new
        try:
            return b"".join(map(self._words.__getitem__, self.split(text)))
        except _GivenUp:
            return None

    def split(self, text: str) -> list[str]:
        """Return the words of ``text``: what a pattern finds, and what it leaves between its finds."""
        pieces = [text]
        for split in self._first:
            pieces = _all_of(split, pieces)
        words = self._find(text) if len(pieces) == 1 else list(chain.from_iterable(map(self._find, pieces)))
        return words if sum(map(len, words)) == len(text) else _all_of(self._last, pieces)

    def _encode_word(self, word: str) -> bytes:
        return pack_tokens([token.id for token in self._model.tokenize(word.translate(self._letters))])

    def agrees(self, backend: tokenizers.Tokenizer) -> bool:
        """Look whether the probes are cut as the pipeline cuts them."""
        if backend.pre_tokenizer is None:
            return False
        for probe in _PROBES:
            cut = [probe[begin:end] for _, (begin, end) in backend.pre_tokenizer.pre_tokenize_str(probe)]
            if self.split(probe) != cut:
                return False
        return True


class _GivenUp(Exception):
    """This text is not for encoding by words."""


class _Words(dict[str, bytes]):
    """Word -> packed ids, filled on first use. When full, what has not been used since the last time goes.
    ``left``: new words that may still come; where two threads share it, a bound on time, not on
    correctness."""

    def __init__(self, encode: Callable[[str], bytes]) -> None:
        super().__init__()
        self.left = 0
        self._encode = encode
        self._before: dict[str, bytes] = {}

    def __missing__(self, word: str) -> bytes:
        found = self._before.get(word)
        if found is None:
            self.left -= 1
            if self.left < 0 or len(word) > MAX_WORD_CHARS:
                raise _GivenUp
            found = self._encode(word)
            if len(word) > MAX_KEPT_CHARS:
                return found
        if len(self) >= MAX_WORDS:
            self._before = dict(self)
            self.clear()
        self[word] = found
        return found


def _all_of(split: Callable[[str], list[str]], pieces: list[str]) -> list[str]:
    return list(filter(None, chain.from_iterable(map(split, pieces))))


def _leaves_ascii(normalizer: Stage | None) -> bool:
    if normalizer is None:
        return True
    return all(stage["type"] in _IDENTITIES for stage in stages_of(normalizer))


def _patterns(pre_tokenizer: Stage | None) -> list[re.Pattern[str]]:
    """Return what cuts a text, in order: splits that keep what they find apart, then the byte alphabet."""
    if pre_tokenizer is None:
        return []
    *splits, last = stages_of(pre_tokenizer)
    if last["type"] != "ByteLevel" or last.get("add_prefix_space"):
        return []
    found = [_pattern(split) for split in splits]
    if last.get("use_regex", True):
        found.append(translate(_GPT2))
    return found


def _pattern(split: Stage) -> re.Pattern[str]:
    if split["type"] == "Digits":
        return re.compile("[0-9]" if split.get("individual_digits") else "[0-9]+")
    if split["type"] != "Split" or split.get("behavior") != "Isolated" or split.get("invert"):
        raise UnknownPattern(f"{split['type']} is none that keeps what it finds apart")
    pattern = split["pattern"]
    assert isinstance(pattern, dict)
    return translate(pattern["Regex"]) if "Regex" in pattern else re.compile(re.escape(pattern["String"]))
