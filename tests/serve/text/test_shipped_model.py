"""The model that ships with the package is read like any other checkpoint."""

from __future__ import annotations

from pathlib import Path

import tokenmill
from tokenmill.serve.text.detokenizer import Detokenizer
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer

FOLDER = Path(tokenmill.__file__).parent / "models" / "tokenmill-mini"


def test_chat_goes_in_and_text_comes_out() -> None:
    tokenizer, template = Tokenizer.load(FOLDER), ChatTemplate.load(FOLDER)
    assert template is not None
    assert tokenizer.streams_text
    prompt = template.render([{"role": "user", "content": "Hello, 日本 \N{SNAKE}!"}])
    tokens = tokenizer.encode(prompt, add_special_tokens=False)
    assert tokens.count(tokenizer.bos_token_id or 0) <= 1
    assert tokenizer.decode(tokens, skip_special_tokens=False) == prompt
    assert tokenizer.eos_token_ids
    assert set(tokenizer.eos_token_ids) <= tokenizer.special_ids
    detokenizer = Detokenizer(tokenizer)
    text = "".join(detokenizer.push([token]) for token in tokens) + detokenizer.finish()
    assert text == tokenizer.decode(tokens)
    assert "日本 \N{SNAKE}!" in text
