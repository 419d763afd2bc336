from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from transformers import PreTrainedTokenizerFast

from tokenmill.errors import BadRequest, ConfigError
from tokenmill.serve.text.encoder import INLINE_CHARS
from tokenmill.serve.text.tokenizer import Tokenizer

Make = Callable[..., Path]
Backends = dict[str, Callable[[], Backend]]


@pytest.fixture
def threaded(checkpoint: Make, make_backend: Backends) -> Iterator[Tokenizer]:
    """A byte-level tokenizer whose threads end with the test."""
    tokenizer = Tokenizer.load(checkpoint(make_backend["byte_level"]()))
    yield tokenizer
    tokenizer.close()


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=50))
def test_byte_level_decode_undoes_encode(kinds: dict[str, Tokenizer], text: str) -> None:
    tokenizer = kinds["byte_level"]
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


async def test_long_text_is_encoded_off_the_loop(threaded: Tokenizer) -> None:
    tokenizer = threaded
    text = "words and 日本 " * INLINE_CHARS
    ids = (await tokenizer.encode_async(text, add_special_tokens=True)).ids
    assert ids == tokenizer.encode(text, add_special_tokens=True)
    assert any(thread.name.startswith("tokenize") for thread in threading.enumerate())
    short = await tokenizer.encode_async("words", add_special_tokens=True)
    assert short.ids == ids[:1] + tokenizer.encode("words", add_special_tokens=False)


async def test_cancelled_encode_leaves_the_tokenizer_usable(threaded: Tokenizer) -> None:
    tokenizer = threaded
    task = asyncio.create_task(tokenizer.encode_async("words " * 50_000, add_special_tokens=False))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await tokenizer.encode_async("x" * (INLINE_CHARS + 1), add_special_tokens=False)).ids


async def test_closed_tokenizer_has_no_threads(checkpoint: Make, make_backend: Backends) -> None:
    before = set(threading.enumerate())
    tokenizer = Tokenizer.load(checkpoint(make_backend["byte_level"]()))
    await tokenizer.encode_async("日本 " * INLINE_CHARS, add_special_tokens=False)
    assert set(threading.enumerate()) - before
    tokenizer.close()
    assert not set(threading.enumerate()) - before


def test_bos_is_added_only_where_asked(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte_level"]
    assert tokenizer.encode("ab", add_special_tokens=True)[0] == 0
    assert 0 not in tokenizer.encode("ab", add_special_tokens=False)
    assert tokenizer.encode("<s>ab", add_special_tokens=False)[0] == 0


def test_special_tokens_in_text_are_parsed(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte_level"]
    ids = tokenizer.encode("say <|assistant|>", add_special_tokens=False)
    assert ids[-1] in tokenizer.special_ids
    assert tokenizer.decode(ids) == "say "


def test_token_bytes_of_parts_of_characters(kinds: dict[str, Tokenizer]) -> None:
    for kind in ("byte_level", "byte_fallback", "metaspace_bytes"):
        tokenizer = kinds[kind]
        ids = tokenizer.encode("\N{SNAKE}", add_special_tokens=False)
        assert len(ids) > 1
        assert b"".join(map(tokenizer.token_bytes, ids)).lstrip() == "\N{SNAKE}".encode()
        assert "\N{REPLACEMENT CHARACTER}" in tokenizer.token_text(ids[-1])
    special = max(kinds["byte_level"].special_ids)
    assert (
        kinds["byte_level"].token_text(special)
        == "<\N{FULLWIDTH VERTICAL LINE}end▁of▁text\N{FULLWIDTH VERTICAL LINE}>"
    )
    assert (
        kinds["byte_fallback"].token_text(kinds["byte_fallback"].encode("a", add_special_tokens=False)[0])
        == " a"
    )
    assert kinds["byte_level"].token_bytes(2**31) == b""


def test_ids_that_are_no_tokens(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["byte_level"]
    assert tokenizer.decode([tokenizer.vocab_size, 2**32 - 1]) == ""
    for token in (-1, 2**32):
        with pytest.raises(BadRequest) as caught:
            tokenizer.decode([token])
        assert caught.value.param == "tokens"


def test_half_a_surrogate_pair_is_refused(kinds: dict[str, Tokenizer]) -> None:
    with pytest.raises(BadRequest, match="surrogate"):
        kinds["byte_level"].encode("\ud83d", add_special_tokens=False)


def test_special_tokens_are_gathered_from_all_files(checkpoint: Make, make_backend: Backends) -> None:
    folder = checkpoint(
        make_backend["byte_level"](),
        tokenizer_config={
            "eos_token": {"content": "</s>", "__type": "AddedToken"},
            "model_max_length": 4096,
        },
        special_tokens_map={"bos_token": "<s>", "pad_token": "</s>", "eos_token": "<|user|>"},
        generation_config={"eos_token_id": [3, 1], "pad_token_id": 2},
        config={"eos_token_id": 2, "text_config": {"eos_token_id": 7}},
    )
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_token_ids == (3, 1, 2, 7)
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.max_length) == (0, 1, 4096)


def test_bare_tokenizer_json_is_enough(checkpoint: Make, make_backend: Backends) -> None:
    backend = make_backend["byte_level"]()
    tokenizer = Tokenizer.load(checkpoint(backend))
    assert tokenizer.vocab_size == backend.get_vocab_size()
    assert (tokenizer.eos_token_ids, tokenizer.bos_token_id, tokenizer.max_length) == ((), None, None)
    assert tokenizer.special_ids == {
        0,
        1,
        2,
        3,
        backend.token_to_id("<\N{FULLWIDTH VERTICAL LINE}end▁of▁text\N{FULLWIDTH VERTICAL LINE}>"),
    }


def test_no_limit_is_none(checkpoint: Make, make_backend: Backends) -> None:
    folder = checkpoint(make_backend["byte_level"](), tokenizer_config={"model_max_length": int(1e30)})
    assert Tokenizer.load(folder).max_length is None


def test_truncation_left_from_training_is_off(checkpoint: Make, make_backend: Backends) -> None:
    backend = make_backend["byte_level"]()
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    ids = Tokenizer.load(checkpoint(backend)).encode("some words to be cut " * 3, add_special_tokens=False)
    assert len(ids) > 16


CONFIGS = [
    {},
    {"add_bos_token": True, "add_eos_token": False, "bos_token": "<|user|>"},
    {"add_bos_token": False, "bos_token": "<s>"},
    {"add_bos_token": True, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
    {"add_bos_token": True},
    {"eos_token": "on"},
    {"eos_token": "<tool call>"},
    {"split_special_tokens": True},
    {"added_tokens_decoder": {"421": {"content": "<new>", "special": True}}},
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "+".join(config) or "none")
@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_same_ids_as_transformers(
    checkpoint: Make, make_backend: Backends, config: dict[str, object], add_special_tokens: bool
) -> None:
    backend = make_backend["byte_level"]()
    if "added_tokens_decoder" in config:
        config = {
            "added_tokens_decoder": {str(backend.get_vocab_size()): {"content": "<new>", "special": True}}
        }
    folder = checkpoint(backend, tokenizer_config={"tokenizer_class": "PreTrainedTokenizerFast", **config})
    truth = PreTrainedTokenizerFast.from_pretrained(str(folder))
    ours = Tokenizer.load(folder)
    for text in (
        "",
        "I don't 日本",
        "<s>a</s> <tool call><new><|user|>",
        "a <\N{FULLWIDTH VERTICAL LINE}end▁of▁text\N{FULLWIDTH VERTICAL LINE}>",
    ):
        ids = truth.encode(text, add_special_tokens=add_special_tokens)
        assert ours.encode(text, add_special_tokens=add_special_tokens) == ids
        assert ours.decode(ids) == truth.decode(ids, skip_special_tokens=True)
    assert ours.special_ids >= set(truth.all_special_ids) - {None}


@pytest.mark.parametrize("old", ["tokenizer.model", "vocab.json"])
def test_old_formats_are_told_how_to_convert(tmp_path: Path, old: str) -> None:
    (tmp_path / old).write_bytes(b"x")
    with pytest.raises(ConfigError, match=rf"tokenizer\.json: not found, only {old}; convert it") as caught:
        Tokenizer.load(tmp_path)
    assert "save_pretrained" in caught.value.message


def test_missing_and_broken_files_are_named(checkpoint: Make, make_backend: Backends, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not found; copy"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: not a usable tokenizer"):
        Tokenizer.load(tmp_path)
    folder = checkpoint(make_backend["byte_level"]())
    (folder / "config.json").write_text("{,}")
    with pytest.raises(ConfigError, match=r"config\.json: not valid JSON"):
        Tokenizer.load(folder)
    (folder / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match=r"config\.json: must hold a JSON object"):
        Tokenizer.load(folder)


def test_tokens_of_another_checkpoint_are_noticed(checkpoint: Make, make_backend: Backends) -> None:
    config = {"added_tokens_decoder": {"9000": {"content": "<far>", "special": True}}}
    with pytest.raises(ConfigError, match=r"added_tokens_decoder\.9000"):
        Tokenizer.load(checkpoint(make_backend["byte_level"](), tokenizer_config=config))
