"""What every generator produces: a short conversation, or a stretch of plain text."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

Message = dict[str, str]


@dataclass(slots=True)
class Document:
    """One training example.

    With `raw` empty it is a conversation, and only the assistant's turns are learned from.
    With `raw` set it is plain text (for the completions endpoint and for copy drills), and the
    text from `learn_from` on is learned from. With `ids` set it is a row of bare token ids, and
    those from `learn_from` on are learned from.
    """

    messages: list[Message] = field(default_factory=list)
    raw: str = ""
    ids: list[int] = field(default_factory=list)
    learn_from: int = 0
    weight: float = 1.0


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def system(content: str) -> Message:
    return {"role": "system", "content": content}


def chat(*turns: str, weight: float = 1.0) -> Document:
    """Make a conversation whose turns alternate between user and assistant."""
    messages = [user(t) if i % 2 == 0 else assistant(t) for i, t in enumerate(turns)]
    return Document(messages=messages, weight=weight)


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


PREFIXES = (
    "Please ", "Hi, ", "Hello, ", "Hey, ", "OK, ", "Now ", "Quick question: ",
    "I have a question: ", "So, ", "Tell me, ", "Sorry, ", "Thanks. ", "Hello! ", "Hi! ",
)  # fmt: skip
MARKS = ("??", "?!", " ?", "...", ". Thanks!", "? Thank you.")


def roughen(rng: Random, question: str) -> str:
    """Vary a question the way people's typing varies it: case, punctuation, a polite opening."""
    text = question
    if rng.random() < 0.12:
        prefix = rng.choice(PREFIXES)
        keep = text[:2].isupper() or text.startswith("I ") or prefix.rstrip()[-1] in "!."
        text = prefix + (text if keep else text[:1].lower() + text[1:])
    roll = rng.random()
    if roll < 0.10:
        text = text.lower()
    elif roll < 0.14:
        text = upper_first(text.lower())
    roll = rng.random()
    if roll < 0.12:
        text = text.rstrip("?.!")
    elif roll < 0.16:
        text = text.rstrip("?.!") + rng.choice(MARKS)
    elif roll < 0.19:
        text = text.rstrip("?.!") + rng.choice([", please?", " please", " in one sentence?"])
    return text
