"""Little everyday questions: sums, counting, spelling, opposites, capitals, names, greetings."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from .codewords import code_word, made_up_word
from .document import Document, assistant, chat, roughen, system, upper_first, user
from .filler import filler, sentence
from .words import (
    ADJECTIVES,
    ANIMAL_SOUNDS,
    CAPITALS,
    COLORS,
    COMMON,
    DAYS,
    FOODS,
    MONTHS,
    NAMES,
    NOUNS,
    NUMBER_WORDS,
    OPPOSITES,
    THING_COLORS,
)


def addition(rng: Random) -> Document:
    """Ask for one sum, or for a few in a row."""
    document = _sum(rng)
    for _ in range(rng.choice((0, 0, 1, 3, 5))):
        document.messages += _sum(rng).messages
    return document


def _sum(rng: Random) -> Document:
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    asks = (
        f"What is {a} + {b}?", f"What is {a} plus {b}?", f"{a} + {b}", f"{a}+{b}=?", f"{a} + {b} =",
        f"How much is {a} + {b}?", f"Add {a} and {b}.", f"Calculate {a} + {b}.",
        f"What is the sum of {a} and {b}?", f"How much is {a} plus {b}?", f"What's {a}+{b}?",
    )  # fmt: skip
    return chat(roughen(rng, rng.choice(asks)), f"{a} + {b} = {a + b}.")


def sums(rng: Random) -> Document:
    """Ask for many sums at once: the densest way to practice them."""
    pairs = [(rng.randint(0, 20), rng.randint(0, 20)) for _ in range(rng.randint(2, 24))]
    asked = ", ".join(f"{a} + {b}" for a, b in pairs)
    ask = rng.choice(["What is {}?", "Add these: {}.", "Calculate {}.", "Please add: {}", "{}"])
    answer = " ".join(f"{a} + {b} = {a + b}." for a, b in pairs)
    return chat(ask.format(asked), answer)


def quiz(rng: Random) -> Document:
    """Ask for several little facts in a row."""
    messages = []
    for _ in range(rng.randint(3, 10)):
        messages += rng.choice((capital, capital, opposite, opposite, color, calendar))(rng).messages
    return Document(messages=messages)


def counting(rng: Random) -> Document:
    n = rng.randint(2, 20)
    asks = (
        f"Count to {n}.", f"Count from 1 to {n}.", f"Can you count to {n}?",
        f"Please count to {n}.", f"Count up to {n}.", f"Count from one to {NUMBER_WORDS[n]}.",
        f"Count to {NUMBER_WORDS[n]}.",
    )  # fmt: skip
    return chat(roughen(rng, rng.choice(asks)), ", ".join(map(str, range(1, n + 1))) + ".")


def spelling(rng: Random) -> Document:
    pool = rng.choice([NOUNS, COMMON, ADJECTIVES])
    word = rng.choice(pool) if rng.random() < 0.8 else made_up_word(rng, 1, 2)
    asks = (
        f"Spell {word}.", f"Spell the word {word}.", f"How do you spell {word}?",
        f'Spell "{word}".', f"Can you spell {word}?", f"Please spell the word {word}.",
    )  # fmt: skip
    letters = "-".join(letter.upper() for letter in word)
    return chat(roughen(rng, rng.choice(asks)).replace(word.upper(), word), f"{word}: {letters}.")


def opposite(rng: Random) -> Document:
    word, other = rng.choice(list(OPPOSITES.items()))
    asks = (
        f"What is the opposite of {word}?", f"Name the opposite of {word}.",
        f"Do you know the opposite of {word}?", f"Can you tell me the opposite of {word}?",
        f"What word means the opposite of {word}?", f"What's the opposite of {word}?",
        f"Opposite of {word}?", f"Tell me the opposite of {word}.",
        f"Give me the opposite of {word}.",
        f'What is the opposite of "{word}"?', f"Which word is the opposite of {word}?",
    )  # fmt: skip
    return chat(roughen(rng, rng.choice(asks)), f"The opposite of {word} is {other}.")


def capital(rng: Random) -> Document:
    country, city = rng.choice(list(CAPITALS.items()))
    asks = (
        f"What is the capital of {country}?", f"What city is the capital of {country}?",
        f"Can you tell me the capital of {country}?", f"I want to know the capital of {country}.",
        f"{upper_first(country)}: what is the capital?", f"What's the capital of {country}?",
        f"Capital of {country}?", f"What is the capital city of {country}?",
        f"Which city is the capital of {country}?", f"Tell me the capital of {country}.",
        f"Do you know the capital of {country}?", f"Name the capital of {country}.",
    )  # fmt: skip
    return chat(roughen(rng, rng.choice(asks)), f"The capital of {country} is {city}.")


def color(rng: Random) -> Document:
    thing, tint = rng.choice(list(THING_COLORS.items()))
    asks = (
        f"What color is {thing}?", f"What is the color of {thing}?", f"Which color is {thing}?",
        f"What colour is {thing}?", f"Tell me the color of {thing}.",
        f"What color does {thing} have?",
    )  # fmt: skip
    return chat(roughen(rng, rng.choice(asks)), f"{upper_first(thing)} is {tint}.")


def sound(rng: Random) -> Document:
    animal, noise = rng.choice(list(ANIMAL_SOUNDS.items()))
    asks = (
        f"What does {animal} say?", f"What sound does {animal} make?", f"How does {animal} sound?",
        f"Which sound does {animal} make?", f"What noise does {animal} make?",
    )  # fmt: skip
    return chat(roughen(rng, rng.choice(asks)), f'{upper_first(animal)} says "{noise}".')


def calendar(rng: Random) -> Document:
    kind, names = rng.choice([("day", DAYS), ("month", MONTHS)])
    i = rng.randrange(len(names))
    here, after, before = names[i], names[(i + 1) % len(names)], names[i - 1]
    roll = rng.random()
    if roll < 0.40:
        ask = rng.choice([f"What {kind} comes after {here}?", f"Which {kind} comes after {here}?",
                          f"Which {kind} follows {here}?",
                          f"What is the {kind} after {here}?"])  # fmt: skip
        return chat(roughen(rng, ask), f"{after} comes after {here}.")
    if roll < 0.80:
        ask = rng.choice([f"What {kind} comes before {here}?", f"Which {kind} comes before {here}?",
                          f"What is the {kind} before {here}?"])  # fmt: skip
        return chat(roughen(rng, ask), f"{before} comes before {here}.")
    listed = ", ".join(names[:-1]) + " and " + names[-1]
    if kind == "day":
        ask = rng.choice(["What are the days of the week?", "Name the days of the week.",
                          "List the days of the week.",
                          "How many days are in a week?"])  # fmt: skip
        return chat(roughen(rng, ask), f"A week has seven days: {listed}.")
    ask = rng.choice(["What are the months of the year?", "Name the months of the year.",
                      "List the months.", "How many months are in a year?"])  # fmt: skip
    return chat(roughen(rng, ask), f"A year has twelve months: {listed}.")


def list_things(rng: Random) -> Document:
    kinds = {"colors": COLORS, "foods": FOODS, "names": NAMES, "days": DAYS, "months": MONTHS}
    kind, pool = rng.choice(list(kinds.items()))
    n = rng.randint(2, 6)
    asks = (f"Name {NUMBER_WORDS[n]} {kind}.", f"List {n} {kind}.", f"Tell me {n} {kind}.",
            f"Give me {NUMBER_WORDS[n]} {kind}.", f"Can you name {n} {kind}?")  # fmt: skip
    picked = pool[:n] if kind in ("days", "months") else rng.sample(pool, n)
    listed = ", ".join(picked[:-1]) + " and " + picked[-1]
    return chat(roughen(rng, rng.choice(asks)), f"Here are {NUMBER_WORDS[n]} {kind}: {listed}.")


_FAVORITES: dict[str, Callable[[Random], str]] = {
    "name": lambda rng: rng.choice(NAMES) if rng.random() < 0.7 else upper_first(made_up_word(rng)),
    "favorite color": lambda rng: rng.choice(COLORS),
    "favorite food": lambda rng: rng.choice(FOODS),
    "favorite number": lambda rng: str(rng.randint(1, 999)),
    "favorite animal": lambda rng: "the " + rng.choice(NOUNS),
    "favorite day": lambda rng: rng.choice(DAYS),
    "dog's name": lambda rng: rng.choice([*NAMES, upper_first(made_up_word(rng))]),
    "cat's name": lambda rng: rng.choice([*NAMES, upper_first(made_up_word(rng))]),
}


def _told(rng: Random, key: str, value: str) -> tuple[str, str]:
    """Make the user's remark about themselves and the assistant's answer to it."""
    if key == "name":
        say = rng.choice([f"My name is {value}.", f"I am {value}.", f"I'm {value}.",
                          f"Hello, my name is {value}.", f"Hi, I am {value}!", f"Call me {value}.",
                          f"Hi! My name is {value}.", f"Hello! I'm {value}."])  # fmt: skip
        return say, f"Nice to meet you, {value}! How can I help you?"
    say = rng.choice([f"My {key} is {value}.", f"Remember that my {key} is {value}."])
    return say, f"OK, I will remember that your {key} is {value}."


def remembers(rng: Random) -> Document:
    """Tell one or two facts about the user, talk about something else, then ask for one."""
    key = "name" if rng.random() < 0.5 else rng.choice(list(_FAVORITES))
    facts = {key: _FAVORITES[key](rng)}
    if rng.random() < 0.4:
        other = rng.choice([each for each in _FAVORITES if each != key])
        facts[other] = _FAVORITES[other](rng)
    messages = []
    for each in sorted(facts, key=lambda _: rng.random()):
        say, reply = _told(rng, each, facts[each])
        messages += [user(roughen_tail(rng, say)), assistant(reply)]
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        messages += rng.choice(SMALL)(rng).messages
    ask = f"What is my {key}?"
    if key == "name":
        ask = rng.choice([ask, ask, "What's my name?", "Who am I?", "Do you remember my name?",
                          "Do you know my name?", "Can you tell me my name?",
                          "Say my name."])  # fmt: skip
    elif rng.random() < 0.4:
        ask = rng.choice([f"What's my {key}?", f"Do you remember my {key}?", f"Tell me my {key}."])
    messages += [user(roughen(rng, ask)), assistant(f"Your {key} is {facts[key]}.")]
    return Document(messages=messages, weight=1.5)


def name_in_one_turn(rng: Random) -> Document:
    value = _FAVORITES["name"](rng)
    gap = " " + filler(rng, rng.randint(3, 40)) if rng.random() < 0.3 else ""
    ask = rng.choice(["What is my name?", "What's my name?", "Who am I?"])
    return chat(f"My name is {value}.{gap} {ask}", f"Your name is {value}.")


def name_unknown(rng: Random) -> Document:
    ask = rng.choice(["What is my name?", "What's my name?", "Do you know my name?", "Who am I?"])
    return chat(roughen(rng, ask), "You have not told me your name yet.")


def roughen_tail(rng: Random, text: str) -> str:
    """Drop the closing mark now and then; case is kept, as it belongs to the fact."""
    return text.rstrip(".") if rng.random() < 0.15 else text


SYSTEMS = (
    "You are a helpful assistant.", "You are a friendly assistant.", "Answer briefly.",
    "Be polite.",
    "You are Tokenmill Mini, a tiny demo model.", "You are a helpful AI assistant.",
    "Answer in clear English.", "You answer questions about Tokenmill.", "Be concise.",
    "You are a chatbot. Keep your answers short.", "You are helpful, honest and brief.",
)  # fmt: skip


def with_system(rng: Random, document: Document) -> Document:
    """Put a system message in front of a conversation that has none."""
    if document.messages and document.messages[0]["role"] != "system":
        text = rng.choice(SYSTEMS) if rng.random() < 0.8 else sentence(rng)
        document.messages.insert(0, system(text))
    return document


SMALL: tuple[Callable[[Random], Document], ...] = (
    addition, counting, spelling, opposite, capital, color, sound, calendar, list_things,
)  # fmt: skip
_WEIGHTED = ((addition, 8), (counting, 2), (spelling, 3), (opposite, 4), (capital, 5), (color, 1),
             (sound, 1), (calendar, 2), (list_things, 1), (remembers, 5), (name_in_one_turn, 1),
             (name_unknown, 0.5))  # fmt: skip
_MAKERS, _SHARES = zip(*_WEIGHTED, strict=True)


def everyday(rng: Random) -> Document:
    """Draw one everyday question of any kind."""
    document: Document = rng.choices(_MAKERS, _SHARES)[0](rng)
    return document


def random_object(rng: Random) -> str:
    """Name something outside the model's knowledge, for questions it must decline."""
    roll = rng.random()
    if roll < 0.5:
        return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    if roll < 0.8:
        return f"{rng.choice(COMMON)} {rng.choice(COMMON)}"
    return code_word(rng)
