from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.serve.text.detokenizer import Detokenizer
from tokenmill.serve.text.pieces import Machine
from tokenmill.serve.text.tokenizer import Tokenizer

MACHINES = {
    "byte_level": Machine.BYTES,
    "byte_fallback": Machine.TEXT,
    "byte_fallback_keeping_space": Machine.TEXT,
    "byte_fallback_stripping_three": Machine.TEXT,
    "replace_after_fuse": Machine.WHOLE,
    "metaspace_first": Machine.TEXT,
    "metaspace_always": Machine.TEXT,
    "metaspace_never": Machine.TEXT,
    "metaspace_bytes": Machine.TEXT,
    "word_piece": Machine.TEXT,
    "regex_replace": Machine.TEXT,
    "no_decoder": Machine.TEXT,
    "suffix_marks": Machine.WHOLE,
    "ctc": Machine.WHOLE,
}

BURSTS = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def stream(detokenizer: Detokenizer, tokens: list[int], bursts: list[int]) -> list[str]:
    """Push ``tokens`` in bursts of the given sizes, over and over."""
    out = []
    at = turn = 0
    while at < len(tokens):
        size = bursts[turn % len(bursts)]
        out.append(detokenizer.push(tokens[at : at + size]))
        at += size
        turn += 1
    return [*out, detokenizer.finish()]


def token_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids at all, with those that make trouble more often: raw bytes, specials, beyond the end."""
    raw = [token for token in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(token)) == 1]
    troubled = [*tokenizer.special_ids, *raw, tokenizer.vocab_size, tokenizer.vocab_size + 7, 2**31]
    characters = [
        tokenizer.encode(text, add_special_tokens=False)
        for text in ("é", "日本", "👍🏽", " ", "  two", "a", "▁")
    ]
    one = st.integers(0, tokenizer.vocab_size - 1).map(lambda token: [token])
    odd = st.sampled_from(troubled).map(lambda token: [token])
    pieces = st.lists(st.one_of(one, odd, odd, st.sampled_from(characters)), max_size=30)
    return pieces.map(lambda lists: [token for tokens in lists for token in tokens])


@pytest.mark.parametrize("kind", MACHINES)
def test_decoders_are_followed_by_the_right_machine(kinds: dict[str, Tokenizer], kind: str) -> None:
    assert kinds[kind].pieces.machine is MACHINES[kind]
    assert kinds[kind].streams_text is (MACHINES[kind] is not Machine.WHOLE)


@pytest.mark.parametrize("kind", MACHINES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), bursts=BURSTS, skip=st.booleans())
def test_stream_is_decode(
    kinds: dict[str, Tokenizer], kind: str, data: st.DataObject, bursts: list[int], skip: bool
) -> None:
    tokenizer = kinds[kind]
    tokens = data.draw(token_ids(tokenizer))
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    text = "".join(stream(detokenizer, tokens, bursts))
    assert text == tokenizer.decode(tokens, skip_special_tokens=skip)
    assert detokenizer.finish() == ""


@pytest.mark.parametrize("kind", MACHINES)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), bursts=BURSTS, skip=st.booleans())
def test_prefix_is_context(
    kinds: dict[str, Tokenizer], kind: str, data: st.DataObject, bursts: list[int], skip: bool
) -> None:
    tokenizer = kinds[kind]
    prefix, tokens = data.draw(token_ids(tokenizer)), data.draw(token_ids(tokenizer))
    if tokenizer.streams_text:
        settled = Detokenizer(tokenizer, skip_special_tokens=skip).push(prefix)
    else:
        settled = tokenizer.decode(prefix, skip_special_tokens=skip)
    whole = tokenizer.decode(prefix + tokens, skip_special_tokens=skip)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip, prefix=prefix)
    assert "".join(stream(detokenizer, tokens, bursts)) == whole[len(settled) :]


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60), bursts=BURSTS)
def test_byte_level_text_comes_back(kinds: dict[str, Tokenizer], text: str, bursts: list[int]) -> None:
    tokenizer = kinds["byte_level"]
    tokens = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=False)
    assert "".join(stream(detokenizer, tokens, bursts)) == text


def test_whole_characters_leave_at_once(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte_level"]
    tokens = tokenizer.encode("ab 👩 c", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    for at in range(len(tokens)):
        detokenizer_text = detokenizer.push(tokens[at : at + 1])
        assert "\N{REPLACEMENT CHARACTER}" not in detokenizer_text
    assert detokenizer.finish() == ""


def test_incomplete_character_of_the_prompt_comes_with_its_end(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte_level"]
    tokens = tokenizer.encode("x\N{SNAKE}", add_special_tokens=False)
    assert len(tokenizer.token_bytes(tokens[-1])) < 4
    detokenizer = Detokenizer(tokenizer, prefix=tokens[:-1])
    assert detokenizer.push(tokens[-1:]) == "\N{SNAKE}"


def test_raw_bytes_wait_for_the_end_of_their_run(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte_fallback"]
    raw = tokenizer.encode("\N{SNAKE}", add_special_tokens=False)[-4:]
    assert b"".join(map(tokenizer.token_bytes, raw)) == "\N{SNAKE}".encode()
    letter = tokenizer.encode("a", add_special_tokens=False)[-1:]
    good, bad = Detokenizer(tokenizer), Detokenizer(tokenizer)
    assert [good.push(raw), good.push(letter)] == ["", "\N{SNAKE}" + tokenizer.token_text(letter[0])]
    assert [bad.push(raw + raw[:1]), bad.finish()] == ["", 5 * "\N{REPLACEMENT CHARACTER}"]


def test_llama_strips_the_first_space_only_without_context(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte_fallback"]
    tokens = tokenizer.encode("a a", add_special_tokens=False)
    assert "".join(stream(Detokenizer(tokenizer), tokens, [1])) == "a a"
    assert "".join(stream(Detokenizer(tokenizer, prefix=tokens), tokens, [1])) == " a a"


class Counted(Sequence[int]):
    """A list that counts how many of its items were read."""

    def __init__(self, items: list[int]) -> None:
        self.items, self.reads = items, 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key):
        found = self.items[key]
        self.reads += len(found) if isinstance(key, slice) else 1
        return found


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "word_piece"])
def test_cost_does_not_grow_with_the_prefix(kinds: dict[str, Tokenizer], kind: str) -> None:
    prefix = Counted(kinds[kind].encode("some words " * 2000, add_special_tokens=False))
    Detokenizer(kinds[kind], prefix=prefix)
    assert 0 < prefix.reads < 20


def test_unknown_ids_are_not_kept(kinds: dict[str, Tokenizer]) -> None:
    for kind in ("byte_level", "byte_fallback"):
        tokenizer = kinds[kind]
        Detokenizer(tokenizer).push(list(range(2**20, 2**20 + 500)))
        pieces = tokenizer.pieces
        hidden = pieces.hidden(skip_special_tokens=True)
        assert not any(token >= 2**20 for token in pieces.byte_table(hidden))
        assert not any(token >= 2**20 for token in pieces.text_table(hidden))


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "replace_after_fuse"])
def test_some_special_tokens_are_shown(kinds: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = kinds[kind]
    first, second, *_ = sorted(tokenizer.special_ids)
    plain = tokenizer.encode("abc one", add_special_tokens=False)
    tokens = [*plain, first, *plain, second, *plain]
    name = tokenizer.pieces.content(second)
    assert tokenizer.special_named([name, "no such token"]) == {second}
    stream = Detokenizer(tokenizer, shown=frozenset({second}))
    text = "".join([*(stream.push([token]) for token in tokens), stream.finish()])
    whole = [token for token in tokens if token != first]
    assert text == tokenizer.decode(whole, skip_special_tokens=False)
    assert name in text
