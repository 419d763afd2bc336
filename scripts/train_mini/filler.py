# ruff: noqa: SIM905  (word lists read best as they are)
"""Text that stands between a code word and the question about it.

A reader may put anything there, so this draws from as many kinds of text as it can: sentences,
one sentence over and over, word lists, numbers, made-up words, other characters.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .document import upper_first
from .words import (
    ADJECTIVES,
    ADVERBS,
    CODAS,
    COLORS,
    COMMON,
    DAYS,
    FOODS,
    MONTHS,
    NAMES,
    NOUNS,
    NUMBER_WORDS,
    ONSETS,
    PLACES,
    VERBS_PAST,
    VOWELS,
)

FIXED = (
    "The weather is nice today.", "The quick brown fox jumps over the lazy dog.",
    "This is a filler sentence.", "Here is some more text.", "Nothing important happens here.",
    "The train leaves at noon.", "Birds sing in the morning.", "The river flows to the sea.",
    "It was a long and quiet day.", "People walk in the park.", "This text has no meaning.",
    "Please read on.", "The grass is green. The sky is blue. The sun is yellow.",
    "Here we go. There and back again.", "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
    "A prompt is read in prefill and the answer is written in decode.",
    "The cache holds keys and values.", "We had tea and cake in the garden.",
    "Ignore this sentence.", "It rains in the mountains.", "The shop opens at nine.",
    "Some words to fill the space.", "Once upon a time there was a small village.",
    "The meeting was moved to the next week.", "She sells sea shells by the sea shore.",
    "All of this is only filler.", "Remember to drink enough water.", "Time passes slowly.",
    "The report is due at the end of the month.", "Let us talk about something else.",
)  # fmt: skip

LATIN = """
lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore
et dolore magna aliqua enim ad minim veniam quis nostrud exercitation ullamco laboris nisi aliquip
ex ea commodo consequat duis aute irure in reprehenderit voluptate velit esse cillum fugiat
""".split()

SYMBOLS = list("éüñçåøßαβγλπдяжшあいう日本語中文한글→✓★😀🚀{}[]()<>=+*/&%$#@!;:")

CODE_LINES = (
    "for i in range(10):", "    print(i)", "def add(a, b):", "    return a + b", "x = 1",
    "import os", "if x > 0:", "    x = x - 1", "while True:", "    break", "return None",
    '{"name": "test", "value": 3}', "SELECT * FROM users;", "<p>Hello</p>", "# a comment",
    "let y = 2;", "a, b = b, a", "git commit -m 'fix'", "pip install tokenmill",
)  # fmt: skip


def sentence(rng: Random) -> str:
    """Draw one plain English sentence."""
    a, b = rng.choice(ADJECTIVES), rng.choice(ADJECTIVES)
    noun, other = rng.choice(NOUNS), rng.choice(NOUNS)
    name, verb = rng.choice(NAMES), rng.choice(VERBS_PAST)
    place, day, food = rng.choice(PLACES), rng.choice(DAYS), rng.choice(FOODS)
    number, adverb = rng.choice(NUMBER_WORDS[2:]), rng.choice(ADVERBS)
    forms = (
        f"The {a} {noun} stood near the {b} {other}.",
        f"{name} {verb} the {noun} {adverb}.",
        f"On {day} {name} {verb} {number} {noun}s at the {place}.",
        f"There is a {a} {noun} in the {place}.",
        f"{name} and {rng.choice(NAMES)} went to the {place} to buy {food}.",
        f"The {noun} was {a}, but the {other} was {b}.",
        f"In {rng.choice(MONTHS)} the {place} is {a} and {b}.",
        f"My favorite color is {rng.choice(COLORS)}, and I like {food}.",
        f"{name} has {number} {a} {noun}s and a {other}.",
        f"Why did the {noun} look so {a}?",
        f"The price of {food} was {rng.randint(2, 99)} dollars last {day}.",
        f"{name} said that the {noun} is {a} and {verb} it {adverb}.",
        f"A {noun} is not a {other}.",
        f"{upper_first(adverb)}, {name} {verb} a {a} {other} in the {place}.",
        f"The number is {rng.randint(0, 9999)}.",
        f"I think that {food} and {rng.choice(FOODS)} taste good with {rng.choice(FOODS)}.",
    )
    return rng.choice(forms)


def _sentences(rng: Random, words: int) -> list[str]:
    return [sentence(rng) for _ in range(max(1, words // 8))]


def _fixed(rng: Random, words: int) -> list[str]:
    return [rng.choice(FIXED) for _ in range(max(1, words // 6))]


def _repeated(rng: Random, words: int) -> list[str]:
    each = rng.choice(FIXED) if rng.random() < 0.6 else sentence(rng)
    return [each] * max(1, words // len(each.split()))


def _common_words(rng: Random, words: int) -> list[str]:
    """Random words cut into sentences: any vocabulary in any order."""
    out: list[str] = []
    while len(out) < words:
        length = rng.randint(4, 12)
        part = [rng.choice(COMMON) for _ in range(length)]
        out += [upper_first(part[0]), *part[1:-1], part[-1] + rng.choice([".", ".", ".", "?", "!"])]
    return [*out[: words - 1], out[-1]]


def _latin(rng: Random, words: int) -> list[str]:
    return [rng.choice(LATIN) for _ in range(words)]


def _made_up(rng: Random, words: int) -> list[str]:
    return [
        "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(1, 3)))
        for _ in range(max(1, words // 2))
    ]


def _numbers(rng: Random, words: int) -> list[str]:
    if rng.random() < 0.5:
        start = rng.randint(0, 50)
        return [str(start + i) for i in range(max(1, words // 2))]
    return [str(rng.randint(0, 10 ** rng.randint(1, 4))) for _ in range(max(1, words // 2))]


def _symbols(rng: Random, words: int) -> list[str]:
    return ["".join(rng.choice(SYMBOLS) for _ in range(2)) for _ in range(max(1, words // 4))]


def _code(rng: Random, words: int) -> list[str]:
    lines = [rng.choice(CODE_LINES) for _ in range(max(1, words // 6))]
    return [line + "\n" for line in lines]


def _one_word(rng: Random, words: int) -> list[str]:
    return [rng.choice([*COMMON, *NOUNS])] * words


_KINDS: list[tuple[float, Callable[[Random, int], list[str]]]] = [
    (0.34, _sentences), (0.14, _fixed), (0.12, _repeated), (0.20, _common_words), (0.04, _latin),
    (0.05, _made_up), (0.04, _numbers), (0.02, _symbols), (0.03, _code), (0.02, _one_word),
]  # fmt: skip
_WEIGHTS = [weight for weight, _ in _KINDS]
_MAKERS = [maker for _, maker in _KINDS]


def filler(rng: Random, words: int) -> str:
    """Make about `words` words of text, from one kind or from a few kinds in a row."""
    pieces = 1 if words < 40 or rng.random() < 0.5 else rng.randint(2, 4)
    parts: list[str] = []
    for maker in rng.choices(_MAKERS, _WEIGHTS, k=pieces):
        parts += maker(rng, max(1, words // pieces))
    return " ".join(parts).strip()
