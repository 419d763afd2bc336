"""The training text: which kinds of document come how often, and how they become tokens.

Nothing is downloaded and nothing is stored: documents are drawn from a seeded generator while the
model trains, so it sees almost no document twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tokenizers import Tokenizer

from .codewords import drill, echo, interrupted, recall, token_drill, unknown_code
from .document import Document
from .everyday import everyday, quiz, sums, with_system
from .questions import any_question
from .stories import any_story
from .tokenizer import BOS, EOS, ROLES, SPECIAL

MAX_TOKENS = 1280
DENSE = 0.2


@dataclass(slots=True)
class Example:
    """Token ids, and for each id how much the model is to learn to predict it."""

    ids: list[int]
    weights: list[float]


def _distance(rng: Random, progress: float) -> int:
    """Draw how many words stand between a code word and its question: short ones first."""
    roll = rng.random()
    if roll < 0.10:
        return 0
    if roll < 0.60 or progress < 0.05:
        return rng.randint(1, 40)
    if roll < 0.85 or progress < 0.15:
        return rng.randint(20, 200)
    return rng.randint(150, 720)


def draw(rng: Random, progress: float = 1.0) -> Document:
    """Draw one document; `progress` runs from 0 to 1 over the training run."""
    drills = max(0.06, 0.5 - 2.0 * progress)
    if rng.random() < drills:
        return drill(rng) if rng.random() < 0.4 else token_drill(rng)
    if rng.random() < DENSE:
        return rng.choice((quiz, sums, sums))(rng)
    roll = rng.random()
    if roll < 0.28:
        return recall(rng, _distance(rng, progress))
    if roll < 0.34:
        return echo(rng)
    if roll < 0.36:
        return unknown_code(rng)
    if roll < 0.39:
        return interrupted(rng, any_question(rng))
    return _conversation(rng)


def _conversation(rng: Random) -> Document:
    """Draw one to four exchanges of any kind, now and then under a system message."""
    document = _exchange(rng)
    if not document.raw:
        for _ in range(rng.choice((0, 0, 0, 0, 0, 1, 1, 2))):
            recalls = rng.random() < 0.2
            following = recall(rng, rng.randint(0, 10)) if recalls else _exchange(rng)
            document.messages += [m for m in following.messages if m["role"] != "system"]
        if rng.random() < 0.15:
            with_system(rng, document)
    return document


def _exchange(rng: Random) -> Document:
    maker = rng.choices((any_question, everyday, any_story), (10, 6, 4))[0]
    document = maker(rng)
    while document.raw and rng.random() < 0.9:
        document = maker(rng)
    return document


class Encoder:
    """Turn documents into examples, in the very form that the chat template gives."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bos, self._eos = SPECIAL.index(BOS), SPECIAL.index(EOS)
        self._roles = {role: SPECIAL.index(token) for role, token in ROLES.items()}

    def encode(self, document: Document) -> Example:
        """Return the document's ids, and weights that are zero where nothing is learned."""
        if document.ids:
            learned = len(document.ids) - document.learn_from
            return Example(document.ids, [0.0] * document.learn_from + [document.weight] * learned)
        if document.raw:
            return self._encode_raw(document)
        ids, weights = [self._bos], [0.0]
        texts = [message["content"].strip() for message in document.messages]
        for message, coded in zip(document.messages, self._tokenizer.encode_batch(texts), strict=True):
            weight = document.weight if message["role"] == "assistant" else 0.0
            ids += [self._roles[message["role"]], *coded.ids, self._eos]
            weights += [0.0, *([weight] * len(coded.ids)), weight]
        return Example(ids, weights)

    def _encode_raw(self, document: Document) -> Example:
        head = self._tokenizer.encode(document.raw[: document.learn_from]).ids
        tail = self._tokenizer.encode(document.raw[document.learn_from :]).ids
        learned = [document.weight] * len(tail)
        return Example([*head, *tail, self._eos], [*([0.0] * len(head)), *learned, document.weight])


def examples(encoder: Encoder, rng: Random, count: int, progress: float) -> list[Example]:
    """Draw `count` examples that fit the longest sequence trained on."""
    out: list[Example] = []
    while len(out) < count:
        example = encoder.encode(draw(rng, progress))
        if len(example.ids) <= MAX_TOKENS:
            out.append(example)
    return out
