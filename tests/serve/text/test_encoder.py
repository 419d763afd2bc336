"""Whatever the ways to encode, the ids are those of the library's whole pipeline."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from tokenmill.protocol.block_hashes import pack_tokens, unpack_tokens
from tokenmill.serve.text import encoder as encoder_module
from tokenmill.serve.text.ascii_pattern import UnknownPattern, translate
from tokenmill.serve.text.encoder import INLINE_CHARS, INLINE_WORD_CHARS, Encoder
from tokenmill.serve.text.segments import SegmentCache
from tokenmill.serve.text.words import MAX_WORD_CHARS, MAX_WORDS, WordEncoder

CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
POSSESSIVE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PUNCTUATED = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TOKENS = ("<|im_start|>", "<|im_end|>", "<|im_end|>x", "<|a", "a|>")


def byte_bpe(*patterns: str | pre_tokenizers.PreTokenizer, use_regex: bool = False) -> Backend:
    """A small byte-level BPE cut by ``patterns``, with overlapping added tokens."""
    backend = Backend(models.BPE())
    splits = [p if not isinstance(p, str) else pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, last]) if splits else last
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    sample = (
        "the user's words don't end here: 123 4567 items, \n\n  def f(x):\n\treturn x + 1 It'S WE'LL a|b "
    )
    backend.train_from_iterator([sample * 20, "naïve 日本 語 Привет 👍"] * 3, trainer)
    backend.add_special_tokens([AddedToken(content, normalized=False) for content in TOKENS])
    return backend


def with_tokens(backend: Backend, *tokens: AddedToken) -> Backend:
    backend.add_tokens(list(tokens))
    return backend


def normalized_by(backend: Backend, normalizer: normalizers.Normalizer) -> Backend:
    backend.normalizer = normalizer
    return backend


BY_WORDS: dict[str, Callable[[], Backend]] = {
    "gpt2": lambda: byte_bpe(use_regex=True),
    "cl100k": lambda: byte_bpe(CL100K),
    "o200k": lambda: byte_bpe(O200K),
    "digits_apart": lambda: byte_bpe(pre_tokenizers.Digits(individual_digits=True), use_regex=True),
    "digits_together": lambda: byte_bpe(pre_tokenizers.Digits(individual_digits=False), use_regex=True),
    "three_splits": lambda: byte_bpe(r"\p{N}{1,3}", r"[\r\n]", PUNCTUATED),
    "leaves_gaps": lambda: byte_bpe(r"\p{L}+"),
    "nfc": lambda: normalized_by(byte_bpe(CL100K), normalizers.NFC()),
    "token_after_normalizing": lambda: with_tokens(byte_bpe(CL100K), AddedToken("end here", normalized=True)),
}
NOT_BY_WORDS: dict[str, Callable[[], Backend]] = {
    "anchored": lambda: byte_bpe(POSSESSIVE),
    "no_split": byte_bpe,
    "lstrip": lambda: with_tokens(byte_bpe(CL100K), AddedToken("<|l|>", lstrip=True, normalized=False)),
    "rstrip": lambda: with_tokens(byte_bpe(CL100K), AddedToken("<|r|>", rstrip=True, normalized=False)),
    "single_word": lambda: with_tokens(byte_bpe(CL100K), AddedToken("user", single_word=True)),
    "lower_case": lambda: normalized_by(byte_bpe(CL100K), normalizers.Lowercase()),
}


@pytest.fixture(scope="module")
def made() -> Iterator[dict[str, tuple[Backend, Encoder]]]:
    """Backends with an encoder each, that keeps what it sees through all examples."""
    pairs = {}
    for name, make in (BY_WORDS | NOT_BY_WORDS).items():
        backend = make()
        pairs[name] = (backend, Encoder(backend, threads=1, cache_bytes=200_000))
    yield pairs
    for _, encoder in pairs.values():
        encoder.close()


PARTS = st.one_of(
    st.sampled_from(
        [*TOKENS, "<|l|>", "<|r|>", "end here", "user", "I'm", "WE'LL", "it'S", "\n", "\r\n", "\t", " ", "  "]
    ),
    st.sampled_from(
        ["123", "4567", "don't end here", "naïve", "日本", "👍🏽", "é", "\x1c", "\x0b", "\x85", "\u2028"]
    ),
    st.text("abXY01 '\n\t.,<|>_", max_size=12),
    st.text(max_size=8),
)
TEXTS = st.lists(PARTS, max_size=14).map("".join)


@pytest.mark.parametrize("name", [*BY_WORDS, *NOT_BY_WORDS])
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, tail=TEXTS)
def test_ids_are_the_librarys(
    made: dict[str, tuple[Backend, Encoder]], name: str, text: str, tail: str
) -> None:
    backend, encoder = made[name]
    for whole in (text, text + tail, text + "<|im_end|>\n<|im_start|>" + tail, text):
        for special in (False, True):
            expected = backend.encode(whole, add_special_tokens=special).ids
            found = encoder.encode(whole, add_special_tokens=special)
            assert found.ids == expected
            assert found.packed == pack_tokens(expected)


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.one_of(PARTS, st.sampled_from(["<s>", "</s>", "<|user|>", "do", "n't"])), max_size=12)
)
def test_every_kind_of_tokenizer_agrees(kinds: dict[str, object], parts: list[str]) -> None:
    text = "".join(parts)
    for name, tokenizer in kinds.items():
        backend = tokenizer._backend  # type: ignore[attr-defined]
        for special in (False, True):
            found = tokenizer.encode(text, add_special_tokens=special)  # type: ignore[attr-defined]
            assert found == backend.encode(text, add_special_tokens=special).ids, name


@pytest.mark.parametrize("name", BY_WORDS)
def test_usual_pipelines_are_encoded_by_words(name: str) -> None:
    assert WordEncoder.of(BY_WORDS[name]()) is not None


@pytest.mark.parametrize("name", ["anchored", "no_split", "lower_case"])
def test_unusual_pipelines_are_not(name: str) -> None:
    assert WordEncoder.of(NOT_BY_WORDS[name]()) is None


@pytest.mark.parametrize("name", ["lstrip", "rstrip", "single_word"])
def test_tokens_that_look_around_are_not_cut_at(made: dict[str, tuple[Backend, Encoder]], name: str) -> None:
    _, encoder = made[name]
    cutter = encoder._cutter
    assert not cutter.exact
    assert cutter.cut("a <|im_end|> b") == ["a <|im_end|> b"]
    assert encoder._words is None


def test_split_special_tokens_are_text(made: dict[str, tuple[Backend, Encoder]]) -> None:
    backend = byte_bpe(CL100K)
    backend.encode_special_tokens = True
    encoder = Encoder(backend, threads=1, cache_bytes=10_000)
    text = "a<|im_end|>b" * 10
    assert encoder.encode(text, add_special_tokens=False).ids == backend.encode(text).ids
    encoder.close()


@pytest.fixture
def fresh() -> Iterator[tuple[Backend, Encoder]]:
    backend = byte_bpe(CL100K)
    encoder = Encoder(backend, threads=1, cache_bytes=100_000)
    yield backend, encoder
    encoder.close()


def chat(turns: int) -> str:
    lines = [
        f"<|im_start|>user\nthe words of turn {at} don't end here, 日本 {at}<|im_end|>\n"
        for at in range(turns)
    ]
    return "".join(lines)


def test_only_the_new_turn_is_encoded(
    fresh: tuple[Backend, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, encoder = fresh
    encoder.encode(chat(30), add_special_tokens=False)
    asked: list[str] = []
    whole = encoder._whole

    def counted(texts: list[str], *, add_special_tokens: bool = False) -> list[bytes]:
        asked.extend(texts)
        return whole(texts, add_special_tokens=add_special_tokens)

    monkeypatch.setattr(encoder, "_whole", counted)
    found = encoder.encode(chat(31), add_special_tokens=False)
    assert found.ids == backend.encode(chat(31)).ids
    assert asked == ["user\nthe words of turn 30 don't end here, 日本 30"]


async def test_new_text_that_takes_long_goes_to_a_thread(fresh: tuple[Backend, Encoder]) -> None:
    backend, encoder = fresh
    before = set(threading.enumerate())
    text = "the words " * (INLINE_WORD_CHARS // 20)
    assert (await encoder.encode_async(text, add_special_tokens=False)).ids == backend.encode(text).ids
    assert set(threading.enumerate()) == before
    for long in ("日本 " * INLINE_CHARS, "the words " * INLINE_WORD_CHARS, "x" * (INLINE_CHARS + 1)):
        assert (await encoder.encode_async(long, add_special_tokens=False)).ids == backend.encode(long).ids
    assert set(threading.enumerate()) - before


async def test_many_new_words_go_to_a_thread(
    fresh: tuple[Backend, Encoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, encoder = fresh
    monkeypatch.setattr(encoder_module, "INLINE_NEW_WORDS", 10)
    text = " ".join(f"w{chr(97 + at % 26)}{chr(97 + at // 26 % 26)}" for at in range(600))
    before = set(threading.enumerate())
    assert (await encoder.encode_async(text, add_special_tokens=False)).ids == backend.encode(text).ids
    assert set(threading.enumerate()) - before


async def test_the_loop_goes_on_while_a_thread_encodes(fresh: tuple[Backend, Encoder]) -> None:
    _, encoder = fresh
    turns = 0
    task = asyncio.create_task(encoder.encode_async("日本 words " * 60_000, add_special_tokens=False))
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 2
    assert len((await task).ids) > 60_000


def test_words_are_bounded() -> None:
    words = WordEncoder.of(byte_bpe(CL100K))
    assert words is not None
    for at in range(0, 3 * MAX_WORDS, 1000):
        text = " ".join(_name(number) for number in range(at, at + 1000))
        assert words.encode(text, 10_000) is not None
    assert len(words._words) <= MAX_WORDS
    assert len(words._words._before) <= MAX_WORDS
    assert words.encode("a" * (MAX_WORD_CHARS + 1), 10) is None


def _name(number: int) -> str:
    return "".join(chr(97 + number // 26**place % 26) for place in range(4))


def test_the_cache_is_bounded_and_drops_what_is_oldest() -> None:
    cache = SegmentCache(20_000)
    for at in range(100):
        cache.put(f"{at:0200}", bytes(400))
        assert cache.get(f"{0:0200}") is not None
    assert cache.used_bytes <= 20_000
    assert len(cache) == 20_000 // (200 + 400 + 250)
    assert cache.get(f"{99:0200}") == bytes(400)
    assert cache.get(f"{50:0200}") is None
    cache.put("x" * 10_000, b"")
    assert cache.get("x" * 10_000) is None
    cache.put(f"{99:0200}", bytes(400))
    assert cache.used_bytes == len(cache) * 850


def test_packing_there_and_back() -> None:
    assert unpack_tokens(pack_tokens([0, 1, 2**32 - 1])) == [0, 1, 2**32 - 1]


REFUSED = (
    r"^a", r"a$", r".", r"\ba", r"[a-z&&[^b]]", r"\p{Greek}", r"(a)\1", r"(?<n>a)", r"a{2}?", r"a{1,2}+", "é",
    r"\h", r"[[:alpha:]]", r"(?m)a", r"\p{L", "[a", "\\", r"[\w-z]", "a]", r"(?#x)",
)  # fmt: skip


@pytest.mark.parametrize("pattern", REFUSED)
def test_patterns_that_may_mean_something_else_are_refused(pattern: str) -> None:
    with pytest.raises(UnknownPattern):
        translate(pattern)


@settings(max_examples=300, deadline=None)
@given(text=st.text(st.characters(max_codepoint=127), max_size=40))
@pytest.mark.parametrize(
    "pattern", [CL100K, O200K, PUNCTUATED, r"\p{N}{1,3}", r"[\P{L}\d]+?|\D", r"[^\S\n]*\W(?=\w)"]
)
def test_translations_find_what_the_library_finds(pattern: str, text: str) -> None:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    expected = [text[begin:end] for _, (begin, end) in split.pre_tokenize_str(text)]
    found = [part for part in re.split(f"({translate(pattern).pattern})", text, flags=re.ASCII) if part]
    assert found == expected
