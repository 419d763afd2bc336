"""Train the small model that ships with Tokenmill, on one CPU core.

    python -m scripts.train_mini.train --out DIR --tokens 10000000

The text is generated as it goes (see `corpus.py`), so the only inputs are the seed and the budget.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from .corpus import Encoder, Example, draw, examples
from .export import export, load_weights, model_config
from .optim import optimizers
from .tokenizer import train_tokenizer

MICRO_TOKENS = 2048
MICRO_BATCHES = 2
POOL = 1500
WARMUP = 0.02
AVERAGING = 0.995


@dataclass(frozen=True, slots=True)
class Batch:
    """A rectangle of examples of similar length, padded on the right."""

    ids: Tensor
    targets: Tensor
    weights: Tensor


def _pad(group: list[Example]) -> Batch:
    width = max(len(example.ids) for example in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    weights = torch.zeros(len(group), width)
    for row, example in enumerate(group):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:])


def batches(encoder: Encoder, rng: Random, progress: Progress) -> Iterator[Batch]:
    """Yield batches without end. Sorting a pool by length wastes little on padding, and needs no
    attention mask."""
    while True:
        pool = sorted(examples(encoder, rng, POOL, progress.lesson), key=lambda e: len(e.ids))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(example.ids) > MICRO_TOKENS:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        yield from map(_pad, groups)


class Progress:
    """How far the run is, by tokens seen or by time spent, whichever is further."""

    def __init__(self, tokens: int, minutes: float, *, go_on: bool = False) -> None:
        self._go_on = go_on
        self._tokens, self._seconds = tokens, minutes * 60
        self._start = time.monotonic()
        self.seen = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def value(self) -> float:
        """From 0 to 1."""
        return min(1.0, max(self.seen / self._tokens, self.elapsed / self._seconds))

    @property
    def lesson(self) -> float:
        """How far the curriculum is: a model that goes on has left the first lessons behind."""
        return 1.0 if self._go_on else self.value

    def learning_rate(self) -> float:
        """Warm up, then follow a cosine down to one percent."""
        if self.value < WARMUP:
            return max(0.02, self.value / WARMUP)
        share = (self.value - WARMUP) / (1 - WARMUP)
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share))


def _loss(model: LlamaForCausalLM, batch: Batch) -> tuple[Tensor, float]:
    """Return the weighted sum of losses. Logits are made only where something is learned."""
    learned = batch.weights > 0
    weights = batch.weights[learned]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(batch.ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[learned])
    losses = functional.cross_entropy(logits.float(), batch.targets[learned], reduction="none")
    return (losses * weights).sum(), float(weights.sum())


class Averaged:
    """A running mean of the weights: steadier than the last step's, so usable at any time."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self._model = model
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        self._updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take the model's present weights into the mean."""
        self._updates += 1
        decay = min(AVERAGING, self._updates / (self._updates + 10))
        for name, param in self._model.named_parameters():
            self.weights[name].lerp_(param, 1 - decay)


def _tokenizer(rng: Random, documents: int = 20_000) -> Tokenizer:
    drawn = (draw(rng) for _ in range(documents))
    return train_tokenizer(d.raw or "\n".join(m["content"] for m in d.messages) for d in drawn)


def train(args: argparse.Namespace) -> None:
    """Run the whole training and leave the exported model in `args.out`."""
    torch.manual_seed(args.seed)
    rng = Random(args.seed)
    tokenizer = _tokenizer(Random(args.seed + 1))
    model = LlamaForCausalLM(model_config())
    earlier: list[dict[str, float]] = []
    if args.init:
        tokenizer = Tokenizer.from_file(str(args.init / "tokenizer.json"))
        model.load_state_dict(load_weights(args.init), strict=False)
        before = json.loads((args.init / "training.json").read_text(encoding="utf-8"))
        with torch.no_grad():
            model.model.norm.weight.div_(before["sharpness"])
        earlier = before["runs"]
    progress = Progress(args.tokens, args.minutes, go_on=args.init is not None)
    muon, adam = optimizers(model, args.muon_lr, args.adam_lr)
    rates = [(group, group["lr"]) for opt in (muon, adam) for group in opt.param_groups]
    averaged = Averaged(model)
    stream = batches(Encoder(tokenizer), rng, progress)
    log = (args.out / "log.jsonl").open("a", encoding="utf-8")
    step, saved = 0, 0.0
    while progress.value < 1:
        total, weight = 0.0, 0.0
        for _ in range(MICRO_BATCHES):
            batch = next(stream)
            loss, count = _loss(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total, weight = total + loss.item(), weight + count
            progress.seen += batch.ids.numel()
        for param in model.parameters():
            assert param.grad is not None
            param.grad.div_(weight)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group, rate in rates:
            group["lr"] = rate * progress.learning_rate()
        muon.step()
        adam.step()
        model.zero_grad()
        averaged.update()
        step += 1
        if step % 20 == 0:
            entry = {"step": step, "loss": round(total / weight, 4), "tokens": progress.seen,
                     "seconds": round(progress.elapsed, 1)}  # fmt: skip
            log.write(json.dumps(entry) + "\n")
            log.flush()
            print(entry, flush=True)
        if progress.elapsed - saved > args.save_every:
            saved = progress.elapsed
            _save(args, averaged, tokenizer, earlier, progress, step)
    _save(args, averaged, tokenizer, earlier, progress, step)


def _save(
    args: argparse.Namespace,
    averaged: Averaged,
    tokenizer: Tokenizer,
    earlier: list[dict[str, float]],
    progress: Progress,
    step: int,
) -> None:
    """Export the averaged weights, and note what all runs so far have cost."""
    export(args.out, averaged.weights, tokenizer, args.sharpness)
    run = {"steps": step, "tokens": progress.seen, "minutes": round(progress.elapsed / 60, 1)}
    summary = {"sharpness": args.sharpness, "runs": [*earlier, run]}
    (args.out / "training.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="tokens to train on")
    parser.add_argument("--minutes", type=float, default=600, help="stop after this time at latest")
    parser.add_argument("--init", type=Path, help="go on from this exported model")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--muon-lr", type=float, default=0.015)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--sharpness", type=float, default=1.3, help="see export.py")
    parser.add_argument("--save-every", type=float, default=180, help="seconds between exports")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
