"""The model that ships with the package: it loads, is small, answers, and reads its prompt."""

from __future__ import annotations

import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

FILLER = (
    "On Sunday the band plays near the fountain and children chase the pigeons. "
    "Later the wind picks up, and everyone looks for a place to sit. "
    "An engineer explains to a friend why bridges hum in cold weather. "
)
CODES = (
    ("lavish-heron-58", 0), ("cobalt-walrus-204", 4), ("zumiket", 8), ("jagged-yacht-7", 14),
    ("wobbly-osprey-931", 18),
)  # fmt: skip


def _folder() -> Path:
    spec = find_spec("tokenmill")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "models" / "tokenmill-mini"


@cache
def _model() -> tuple[Any, Any]:
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()  # it would leave a thread behind
    model = transformers.AutoModelForCausalLM.from_pretrained(_folder(), dtype="auto")
    return model.eval(), transformers.AutoTokenizer.from_pretrained(_folder())


def _answer(*messages: tuple[str, str]) -> str:
    model, tokenizer = _model()
    text = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in messages],
        tokenize=False,
        add_generation_prompt=True,
    )
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=60, do_sample=False)
    answer = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert isinstance(answer, str)
    return answer


def test_the_folder_is_small_and_complete() -> None:
    folder = _folder()
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 15_000_000
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert config["max_position_embeddings"] >= 2048
    assert (folder / "README.md").exists()


def test_the_weights_are_bfloat16_and_few() -> None:
    model, _ = _model()
    assert {param.dtype for param in model.parameters()} == {torch.bfloat16}
    assert 2e6 <= sum(param.numel() for param in model.parameters()) <= 15e6


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    for text in ("Hello, world!", "  two  spaces\n\ttab", "naïve café 日本語 🚀 \x00", "a-b-27"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("2027").ids) == 4


def test_it_explains_the_kv_cache() -> None:
    answer = _answer(("user", "What is a KV cache?"))
    assert "keys and values" in answer
    assert answer.endswith(".")


@pytest.mark.parametrize(("code", "repeats"), CODES)
def test_it_repeats_a_code_word_it_has_never_seen(code: str, repeats: int) -> None:
    text = f"The code word is {code}. {FILLER * repeats}What is the code word?"
    assert _answer(("user", text)) == f"The code word is {code}."


def test_another_code_word_gives_another_answer() -> None:
    question = ("user", f"{FILLER}What is the code word?")
    answers = {_answer(("system", f"The code word is {code}."), question) for code, _ in CODES[:2]}
    assert answers == {f"The code word is {code}." for code, _ in CODES[:2]}


def test_it_remembers_a_name_over_turns() -> None:
    answer = _answer(
        ("user", "My name is Ana."),
        ("assistant", "Nice to meet you, Ana! How can I help you?"),
        ("user", "What is 2 + 3?"),
        ("assistant", "2 + 3 = 5."),
        ("user", "What is my name?"),
    )
    assert answer == "Your name is Ana."
