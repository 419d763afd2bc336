"""The random checkpoints can be served: tokenizer, chat template and weights fit each other."""

import json

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tokenmill.testing.checkpoints import EOS_ID, _write_tokenizer, make_checkpoint


@pytest.mark.parametrize("vocab_size", [262, 4096])
def test_the_tokenizer_fills_the_vocabulary_and_round_trips(tmp_path, vocab_size):
    _write_tokenizer(tmp_path, vocab_size, 1024)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == vocab_size
    text = "Grüße, 世界! 12 apples\n\tand </s> more"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert EOS_ID in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_chat_template_ends_where_the_assistant_begins(models):
    tokenizer = AutoTokenizer.from_pretrained(models.folder("llama"))
    told = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert told == "<s><|user|>Hi<|assistant|>"


def test_equal_arguments_give_equal_weights(tmp_path):
    made = [make_checkpoint(tmp_path / str(n), "llama", seed=seed) for n, seed in enumerate((4, 4, 5))]
    weights = [(folder / "model.safetensors").read_bytes() for folder in made]
    assert weights[0] == weights[1] != weights[2]


def test_a_sharded_one_has_an_index(models):
    folder = models.folder("qwen3")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("*.safetensors")}
    assert len(set(index["weight_map"].values())) > 2
