# ruff: noqa: SIM905  (word lists read best as they are)
"""Prompts that never occur in training, with what a right answer is.

The words, the filler text and the phrasings here are kept out of the training modules on purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from .document import Message, system, upper_first, user
from .facts import CONCEPTS
from .questions import DECLINES
from .words import CAPITALS, OPPOSITES

ADJECTIVES = """
cobalt lavish frosty jagged nimble plucky rustic somber turquoise vivid wobbly zealous brisk dapper
elusive feisty grumpy hasty ivied jovial knotty lofty mystic nutty opaque peppery quaint
""".split()

NOUNS = """
heron walrus bagel cactus dynamo eel furnace gazelle hedge igloo jigsaw kiwi lobster mango nugget
osprey pretzel quartz rhino saxophone tulip vulture wrench yacht zeppelin badminton cobra donkey
""".split()

SYLLABLES = "va lo mi zu ket bra nox tel qui wum dex fo riv gat hul pon jas yel cim ob urk".split()

PROSE = """
Early on market day the square fills with carts, and the bakers argue about who arrived first.
Nobody keeps the order for long. By ten the smell of roasted almonds drifts past the town hall.
A clerk leans from a window to complain about the noise, then buys a bag and goes back to work.
Most visitors come for the pottery, although the best bowls are sold before breakfast.
My aunt used to say that a cracked plate tells a better story than a perfect one.
When software grows, small decisions pile up until nobody recalls why a certain file exists.
Engineers then add comments, and later the comments grow stale as well.
Good documentation explains the reason behind a choice rather than the choice itself.
In winter the harbor freezes at its shallow end, and skaters draw loops around the buoys.
The ferry still crosses twice a day, breaking a dark line through the ice.
Scientists measured the thickness in January and found it larger than expected.
They published a chart, which the local paper printed upside down.
Learning an instrument takes patience, since progress hides for weeks and then jumps.
Practice ten minutes every day instead of two hours on a weekend.
Trains to the coast run hourly, except during the festival when they leave every quarter hour.
Bring cash, because the ticket machine rejects most cards.
""".split("\n")

ASKS = (
    "What is the code word?", "Tell me the code word, please.", "What was the code word again?",
    "Do you still know the code word?", "Please say the code word now.",
)  # fmt: skip

FRAMES = (
    "Could you briefly describe {x}?", "In your own words, what is {x}?",
    "Please define {x} for me.",
    "I'd like to learn what {x} is.", "Give me the meaning of {x}.",
    "Someone mentioned {x}. What is that?",
)  # fmt: skip

OUTSIDE = (
    "Who won the world cup in 1998?", "What is the boiling point of mercury?", "Who wrote Hamlet?",
    "How do I change a tire?", "What is the distance from Earth to Jupiter?",
    "Who is Albert Einstein?",
    "Write a Java class for a stack.", "Translate good morning into Japanese.",
    "What is 57 times 12?",
    "How do vaccines work?", "What is the best restaurant in Boston?", "Who painted the Mona Lisa?",
    "What is photosynthesis?", "When did the second world war end?", "What is the GDP of Canada?",
    "How do I tie a tie?", "What is a black hole?", "Recommend a movie for tonight.",
    "What is the capital of Uzbekistan?", "How many bones does a human have?",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation and the test that its answer has to pass."""

    messages: list[Message]
    passes: Callable[[str], bool]


def new_code_word(rng: Random) -> str:
    """Draw a code word from words and syllables that training never used as such."""
    made_up = "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4)))
    number = str(rng.randint(1, 999))
    pair = f"{rng.choice(ADJECTIVES)}-{rng.choice(NOUNS)}"
    return rng.choice([f"{pair}-{number}", f"{pair}-{number}", pair, made_up, f"{made_up}-{number}"])


def prose(rng: Random, words: int) -> str:
    """Cut about `words` words from the held-out text, sentences in random order."""
    out: list[str] = []
    while len(out) < words:
        out += rng.choice(PROSE).split()
    return " ".join(out[:words])


def code_words(rng: Random, words: int, count: int) -> list[Case]:
    cases = []
    for _ in range(count):
        code = new_code_word(rng)
        given, rest = f"The code word is {code}.", f"{prose(rng, words)} {rng.choice(ASKS)}"
        messages = [system(given), user(rest)] if rng.random() < 0.5 else [user(f"{given} {rest}")]
        cases.append(Case(messages, f"The code word is {code}.".__eq__))
    return cases


def explanations(rng: Random, count: int) -> list[Case]:
    cases = []
    for _ in range(count):
        names, answers = rng.choice(CONCEPTS)
        question = rng.choice(FRAMES).format(x=rng.choice(names))
        cases.append(Case([user(upper_first(question))], answers.__contains__))
    return cases


def plain_explanations() -> list[Case]:
    return [Case([user(f"What is {names[0]}?")], answers.__contains__) for names, answers in CONCEPTS]


def additions() -> list[Case]:
    return [
        Case([user(f"What is {a} + {b}?")], f"{a} + {b} = {a + b}.".__eq__)
        for a in range(21)
        for b in range(21)
    ]


def capitals() -> list[Case]:
    return [
        Case(
            [user(f"Could you name the capital of {country} for me?")],
            f"The capital of {country} is {city}.".__eq__,
        )
        for country, city in CAPITALS.items()
    ]


def opposites() -> list[Case]:
    return [
        Case([user(f"Say the opposite of {a}, please.")], f"The opposite of {a} is {b}.".__eq__)
        for a, b in OPPOSITES.items()
    ]


def names(rng: Random, count: int) -> list[Case]:
    """Tell a made-up name, ask two other things, then ask for the name."""
    cases = []
    for _ in range(count):
        name = upper_first("".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))))
        messages = [
            user(f"Hello! My name is {name}."),
            {"role": "assistant", "content": f"Nice to meet you, {name}! How can I help you?"},
            user("What is decode?"),
            {"role": "assistant", "content": CONCEPTS[2][1][0]},
            user("What is my name?"),
        ]
        cases.append(Case(messages, f"Your name is {name}.".__eq__))
    return cases


def refusals() -> list[Case]:
    return [Case([user(question)], DECLINES.__contains__) for question in OUTSIDE]
