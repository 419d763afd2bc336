"""Measure a trained folder on held-out prompts: `python -m scripts.train_mini.evaluate DIR`.

Prints a table and writes `evaluation.json`. An answer counts only if all of it is right.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from . import heldout
from .document import Message, user

WORDS_BETWEEN = (8, 40, 80, 160, 240, 320, 400, 480, 600, 720)
BATCH = 16
SHOWN = (
    "Hello!", "What is a KV cache?", "Tell me a story about a robot.",
    "Why split prefill and decode?",
    "What is 17 + 8?", "Write a poem about the moon.", "Who won the world cup in 1998?",
    "My code word is lavish-heron-58. Keep it. Now, what is TTFT?",
)  # fmt: skip


class Chat:
    """The exported folder, loaded the way any user would load it."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self.model: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        self.tokenizer.padding_side = "left"

    def prompt(self, messages: list[Message]) -> str:
        """Render the messages, up to where the assistant's answer begins."""
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    @torch.inference_mode()
    def answers(
        self, conversations: list[list[Message]], temperature: float = 0.0, limit: int = 60
    ) -> list[str]:
        """Answer a group of conversations at once."""
        inputs = self.tokenizer(
            [self.prompt(messages) for messages in conversations],
            return_tensors="pt", padding=True, add_special_tokens=False,
            return_token_type_ids=False,
        )  # fmt: skip
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
            if temperature
            else {"do_sample": False}
        )
        out = self.model.generate(**inputs, max_new_tokens=limit, **sampling)
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]


def _batches(cases: list[heldout.Case]) -> Iterator[list[heldout.Case]]:
    for start in range(0, len(cases), BATCH):
        yield cases[start : start + BATCH]


def score(chat: Chat, cases: list[heldout.Case], temperature: float = 0.0) -> dict[str, object]:
    """Return the share of right answers, and up to three wrong ones to look at."""
    right, wrong = 0, []
    for group in _batches(cases):
        for case, text in zip(group, chat.answers([c.messages for c in group], temperature), strict=True):
            if case.passes(text):
                right += 1
            else:
                wrong.append([message["content"][-60:] for message in case.messages] + [text])
    return {"share": round(right / len(cases), 4), "of": len(cases), "wrong": wrong[:3]}


def evaluate(folder: Path, count: int, seed: int) -> dict[str, dict[str, object]]:
    """Run every held-out group."""
    torch.manual_seed(seed)
    rng, chat = Random(seed), Chat(folder)
    results: dict[str, dict[str, object]] = {}

    def run(name: str, cases: list[heldout.Case], temperature: float = 0.0) -> None:
        results[name] = score(chat, cases, temperature)
        print(f"{name:48s} {results[name]['share']:7.1%} of {results[name]['of']}", flush=True)

    for words in WORDS_BETWEEN:
        cases = heldout.code_words(rng, words, count)
        middle = sorted(len(chat.tokenizer(chat.prompt(c.messages))["input_ids"]) for c in cases)
        run(f"code word, prompt of about {middle[len(middle) // 2]} tokens", cases)
    run("code word, short prompt, temperature 1", heldout.code_words(rng, 40, count), 1.0)
    run("explanation, usual phrasing", heldout.plain_explanations())
    run("explanation, usual phrasing, temperature 1", heldout.plain_explanations(), 1.0)
    run("explanation, phrasing never seen", heldout.explanations(rng, 2 * count))
    run("addition up to 20 + 20", heldout.additions())
    run("capital, phrasing never seen", heldout.capitals())
    run("opposite, phrasing never seen", heldout.opposites())
    run("made-up name after two other turns", heldout.names(rng, count))
    run("declines a question outside its world", heldout.refusals())
    return results


def show(folder: Path) -> None:
    """Print a few answers, greedy and sampled."""
    chat = Chat(folder)
    for text in SHOWN:
        for temperature in (0.0, 1.0):
            answer = chat.answers([[user(text)]], temperature, limit=200)[0]
            print(f"[{temperature:.0f}] {text}\n    {answer}")


def main() -> None:
    """Read the command line, evaluate, and write the results beside the model or elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=40, help="cases in each drawn group")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, default=Path("evaluation.json"))
    parser.add_argument("--show", action="store_true", help="only print sample answers")
    args = parser.parse_args()
    torch.set_num_threads(1)
    show(args.folder)
    if not args.show:
        results = evaluate(args.folder, args.count, args.seed)
        args.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
