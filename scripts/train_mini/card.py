"""Write the model card: `python -m scripts.train_mini.card DIR`.

The numbers come from `training.json` and `evaluation.json`, so the card can't drift from what was
measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from textwrap import fill

from transformers import LlamaForCausalLM

from .corpus import MAX_TOKENS

CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# Tokenmill Mini

A tiny chat model that ships with Tokenmill, so that a factory can be started, watched and tested
on any machine: no download, no GPU. It is a demonstration and test model, not a useful assistant.

| | |
| --- | --- |
| architecture | Llama: {layers} layers, width {width} |
| attention | {heads} heads of {head_dim}, sharing {kv_heads} key-value heads |
| parameters | {parameters:.2f} million, bfloat16, input and output embeddings shared |
| vocabulary | {vocabulary} tokens, byte-level BPE, digits one by one |
| context | {context} positions; trained on up to {trained} tokens |
| license | Apache-2.0, like the project |

## What it does

- **It repeats a code word** given anywhere before the question, one it has never seen: "The code
  word is lavish-heron-58. ... What is the code word?" A worker can only answer that if it holds the
  KV cache of the prompt, so it shows that the cache arrived when prefill and decode are apart.
- It explains terms of LLM serving (prefill, decode, KV cache, TTFT, batching, ...) and Tokenmill.
- It greets, remembers a name over a few turns, counts, knows some capitals, opposites and
  colors, and tells short stories and poems. It adds up to 20 + 20 and spells words, but both
  often go wrong.
- It says that it doesn't know when asked about something else.

## What it does not do

It has no knowledge beyond the list above and doesn't reason. Its answers are close to sentences
it was trained on. A phrasing far from those in training may get the wrong answer or none, and a
question outside its world may get an answer that sounds sure and is wrong. It speaks English only.
Past about {trained} tokens of context it was not trained. Don't use it for anything that matters.

## Data

All text is written by the script itself, from templates and word lists made for this project
(`scripts/train_mini/`). Nothing was downloaded and no text of other people or models is in it. The
data is Apache-2.0 as well. About a quarter of it asks for a code word again, after 0 to 720 words.

## Training

{training}

```
python -m scripts.train_mini.train --out DIR --tokens {budget}
python -m scripts.train_mini.evaluate DIR --json DIR/evaluation.json
python -m scripts.train_mini.card DIR
```

The seed is fixed; another CPU or thread count rounds differently and gives slightly other weights.

## Evaluation

Prompts that never occur in training: other words and syllables in the code words, other text
between, other phrasings (only the 441 additions were all in the training). Results of this kind,
on other draws, were looked at between the runs, and what failed there guided new templates, so
read the numbers as a little rosy. Greedy unless said otherwise; an answer counts only if every
character is right.

| group | right | of |
| --- | ---: | ---: |
{table}
"""

TRAINING = (
    "{minutes:.0f} minutes on one core of a shared CPU: {tokens:.1f} million tokens, {steps} steps "
    "of about 4,000 tokens, bfloat16 autocast, loss on the assistant's turns. Muon for the "
    "matrices, AdamW for the rest, a cosine schedule; the weights are a running mean. "
)
HISTORY = (
    "These weights come from {runs} runs, each going on from the one before (`--init`) after "
    "templates had been added, the first two stopped early. A single run over as many tokens, as "
    "below, should come out alike, but that was not measured. "
)
SHARPENED = (
    "On export the logits are multiplied by {factor} (in the last norm), so that sampling at "
    "temperature 1 stays on track; greedy answers don't depend on it."
)


def _training(runs: list[dict[str, float]], sharpness: float) -> str:
    """Tell how the training went."""
    total = {key: sum(run[key] for run in runs) for key in ("minutes", "tokens", "steps")}
    text = TRAINING.format(minutes=total["minutes"], tokens=total["tokens"] / 1e6, steps=total["steps"])
    if len(runs) > 1:
        text += HISTORY.format(runs=len(runs))
    if sharpness != 1:
        text += SHARPENED.format(factor=sharpness)
    return fill(text, 100, break_on_hyphens=False)


def card(folder: Path) -> str:
    """Fill the card's text with the numbers of `folder`."""
    training = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    groups = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    model = LlamaForCausalLM.from_pretrained(folder)
    config = model.config
    return CARD.format(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        parameters=model.num_parameters() / 1e6,
        vocabulary=config.vocab_size,
        context=config.max_position_embeddings,
        trained=MAX_TOKENS,
        training=_training(training["runs"], training["sharpness"]),
        budget=round(sum(run["tokens"] for run in training["runs"]), -5),
        table="\n".join(
            f"| {name} | {group['share']:.1%} | {group['of']} |" for name, group in groups.items()
        ),
    )


def main() -> None:
    """Read the command line and write the card into the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    (folder / "README.md").write_text(card(folder), encoding="utf-8")


if __name__ == "__main__":
    main()
