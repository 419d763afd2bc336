"""Tiny tokenizers of the kinds that checkpoints use, made here from text generated here."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Backend

from tokenmill.serve.text.tokenizer import Tokenizer

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>"]


def corpus() -> list[str]:
    rng = random.Random(7)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 7))) for _ in range(150)]
    odd = ["naïve", "don't", "日本", "語", "👍🏽", "é", "Привет", "x=1;", "I'm", "  two", "\n\n"]
    return [" ".join(rng.choices(words + odd, k=12)) for _ in range(120)]


def byte_level() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    # Added tokens are not written in the byte alphabet: fullwidth bars, a space, a plain tool tag.
    backend.add_special_tokens(
        [AddedToken("<\N{FULLWIDTH VERTICAL LINE}end▁of▁text\N{FULLWIDTH VERTICAL LINE}>", normalized=False)]
    )
    backend.add_tokens([AddedToken("<tool call>", normalized=False)])
    return backend


def _byte_fallback_model() -> models.BPE:
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(
        corpus(), trainers.BpeTrainer(vocab_size=200, show_progress=False, limit_alphabet=40)
    )
    model = json.loads(trained.to_str())["model"]
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "▁▁▁"]
    contents = head + [content for content in model["vocab"] if content not in head]
    vocab = {content: at for at, content in enumerate(contents)}
    merges = [tuple(merge) for merge in model["merges"]]
    return models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)


def byte_fallback(*, strip: int = 1, extra: decoders.Decoder | None = None) -> Backend:
    backend = Backend(_byte_fallback_model())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        stages.append(decoders.Strip(" ", strip, 0))
    if extra is not None:
        stages.append(extra)
    backend.decoder = decoders.Sequence(stages)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def metaspace(prepend_scheme: str = "first") -> Backend:
    backend = Backend(_byte_fallback_model())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return backend


def metaspace_bytes() -> Backend:
    backend = metaspace()
    backend.decoder = decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def word_piece() -> Backend:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    special = ["[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*corpus(), "do not , . ' n't 's 've 're 'm ? !"], trainer)
    backend.add_tokens(["n't", "'s", "do", "##."])
    return backend


def regex_replace() -> Backend:
    backend = byte_fallback()
    backend.decoder = decoders.Sequence([decoders.Replace(Regex("[▁_]+"), " "), decoders.Fuse()])
    return backend


def no_decoder() -> Backend:
    backend = Backend(models.WordLevel({"<unk>": 0, "one": 1, "two": 2, "": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


def suffix_marks() -> Backend:
    backend = Backend(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=200, special_tokens=["<unk>"], end_of_word_suffix="</w>", show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    return backend


def ctc() -> Backend:
    backend = no_decoder()
    backend.decoder = decoders.CTC(pad_token="one")
    return backend


KINDS = {
    "byte_level": byte_level,
    "byte_fallback": byte_fallback,
    "byte_fallback_keeping_space": lambda: byte_fallback(strip=0),
    "byte_fallback_stripping_three": lambda: byte_fallback(strip=3),
    "replace_after_fuse": lambda: byte_fallback(strip=0, extra=decoders.Replace("a ", "_")),
    "metaspace_first": metaspace,
    "metaspace_always": lambda: metaspace("always"),
    "metaspace_never": lambda: metaspace("never"),
    "metaspace_bytes": metaspace_bytes,
    "word_piece": word_piece,
    "regex_replace": regex_replace,
    "no_decoder": no_decoder,
    "suffix_marks": suffix_marks,
    "ctc": ctc,
}


def write(folder: Path, backend: Backend, **files: object) -> Path:
    """Write a checkpoint's tokenizer files; ``files`` are JSON bodies by name without ".json"."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    for name, body in files.items():
        (folder / f"{name}.json").write_text(json.dumps(body), "utf-8")
    return folder


def load(folder: Path, backend: Backend, **files: object) -> Tokenizer:
    return Tokenizer.load(write(folder, backend, **files))


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tokenizer]]:
    """One loaded tokenizer of each kind, made once."""
    folder = tmp_path_factory.mktemp("kinds")
    made = {name: load(folder / name, make()) for name, make in KINDS.items()}
    yield made
    for tokenizer in made.values():
        tokenizer.close()


@pytest.fixture(scope="session")
def make_backend() -> dict[str, Callable[[], Backend]]:
    """The library's tokenizers by kind, for tests that write a checkpoint of their own."""
    return KINDS


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write tokenizer.json and the JSON files given by name; return the folder."""

    def make(backend: Backend, **files: object) -> Path:
        return write(tmp_path / "checkpoint", backend, **files)

    return make
