"""Code words, and the conversations that ask the model to give one back.

The point of the shipped model is that a reader can see the prompt's KV cache arrive in another
process: only a worker that holds the cache can repeat a word it was never trained on. So the
words here are drawn from a space far too large to memorise.
"""

from __future__ import annotations

from random import Random

from .document import Document, Message, assistant, roughen, system, upper_first, user
from .facts import CONCEPTS, PAIRS
from .filler import filler
from .tokenizer import SPECIAL, VOCABULARY
from .words import ADJECTIVES, CODAS, COMMON, NAMES, NOUNS, ONSETS, VOWELS

_POOL = sorted(
    {*ADJECTIVES, *NOUNS, *COMMON, *(name.lower() for name in NAMES)}
    | {word.strip(".,:").lower() for _, texts in (*CONCEPTS, *PAIRS) for word in texts[0].split()}
)

LABELS = (
    ["code word"] * 12
    + ["secret word", "password", "magic word", "codeword", "secret code", "passphrase"] * 2
    + ["access code", "pass code", "secret key", "safe word", "launch code", "PIN"]
)


def made_up_word(rng: Random, low: int = 2, high: int = 3) -> str:
    syllables = (
        rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(rng.randint(low, high))
    )
    return "".join(syllables)


def mashed_word(rng: Random) -> str:
    """Join pieces of words, so that every part of the vocabulary comes up as something to copy.

    Without this the model swaps a piece that it never had to copy for a more familiar one.
    """
    pieces = []
    for _ in range(rng.randint(1, 3)):
        word = rng.choice(_POOL)
        start = rng.randint(0, max(0, len(word) - 2))
        pieces.append(word[start : start + rng.randint(2, 7)])
    return "".join(pieces)


def _letters(rng: Random, count: int, alphabet: str = "ABCDEFGHJKLMNPQRSTUVWXYZ") -> str:
    return "".join(rng.choice(alphabet) for _ in range(count))


def _digits(rng: Random, low: int, high: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(rng.randint(low, high)))


def code_word(rng: Random) -> str:
    """Draw a code word in one of many shapes."""
    adjective = rng.choice(ADJECTIVES) if rng.random() < 0.5 else mashed_word(rng)
    noun = rng.choice(NOUNS) if rng.random() < 0.5 else mashed_word(rng)
    roll = rng.random()
    if roll < 0.30:
        return f"{adjective}-{noun}-{_digits(rng, 1, 4)}"
    if roll < 0.38:
        return f"{adjective}-{noun}"
    if roll < 0.54:
        return rng.choice([made_up_word, mashed_word])(rng)
    if roll < 0.64:
        return f"{made_up_word(rng)}-{made_up_word(rng)}-{_digits(rng, 1, 3)}"
    if roll < 0.68:
        return upper_first(made_up_word(rng, 2, 4))
    if roll < 0.72:
        return f"{adjective}{rng.choice([' ', '_', '.'])}{noun}"
    if roll < 0.76:
        return f"{_letters(rng, rng.randint(2, 4))}-{_digits(rng, 2, 5)}"
    if roll < 0.79:
        return _digits(rng, 3, 6)
    if roll < 0.82:
        return (adjective + "-" + noun).upper()
    if roll < 0.85:
        return upper_first(adjective) + upper_first(noun) + _digits(rng, 0, 2)
    if roll < 0.88:
        return _letters(rng, rng.randint(4, 8), "abcdefghijklmnopqrstuvwxyz0123456789")
    if roll < 0.91:
        return made_up_word(rng).upper() + rng.choice(["", "-"]) + _digits(rng, 1, 3)
    if roll < 0.95:
        return rng.choice([noun, adjective, rng.choice(COMMON), rng.choice(NAMES)])
    words = [rng.choice([*NOUNS, *COMMON]) for _ in range(rng.randint(2, 4))]
    return rng.choice(["-", " "]).join(words)


GIVE = (
    "The {label} is {code}.", "The {label} is {code}.", "The {label} is {code}.",
    "The {label} is: {code}.", "Remember: the {label} is {code}.", "My {label} is {code}.",
    "Remember this {label}: {code}.", "Please remember the {label} {code}.",
    "Today the {label} is {code}.", "The {label} for today is {code}.",
    "Remember that the {label} is {code}.", 'The {label} is "{code}".',
    "Important: the {label} is {code}. Do not forget it.", "Our {label} is {code}.",
    "Keep in mind that the {label} is {code}.", "I will tell you a {label}. It is {code}.",
    "Note the {label}: {code}.", "{label}: {code}.", "{label} = {code}.",
    "Use {code} as the {label}.", "{code} is the {label}.", "Hello! The {label} is {code}.",
    "You are a helpful assistant. The {label} is {code}.",
    "Your {label} is {code}. Keep it safe.", "Let the {label} be {code}.",
    "Write this down: the {label} is {code}.", "The {label} is {code}. Please remember it.",
    "Remember this: {code}. It is the {label}.", "The new {label} is {code}.",
)  # fmt: skip

ASK = (
    "What is the {label}?", "What is the {label}?", "What is the {label}?", "What is the {label}?",
    "What's the {label}?", "What was the {label}?", "Tell me the {label}.",
    "Repeat the {label}.", "Please repeat the {label}.", "Do you remember the {label}?",
    "Which {label} did I give you?", "Can you tell me the {label}?", "What is the {label} again?",
    "Now tell me the {label}.", "Please tell me the {label}.", "So what is the {label}?",
    "What was the {label} I told you?", "What {label} did I tell you?", "Say the {label}.",
    "Now, what is the {label}?", "Give me the {label}.", "Question: what is the {label}?",
    "Can you repeat the {label}?", "What is my {label}?", "What is your {label}?",
    "Could you remind me of the {label}?", "I forgot the {label}. What is it?",
    "Please say the {label}.", "Say the {label} now.", "Please give me the {label} now.",
    "Please write the {label}.", "Now say the {label}, please.", "Please name the {label}.",
    "Please answer with the {label}.", "I want to hear the {label}.", "Show me the {label}.",
    "Answer with the {label}.", "And the {label}?", "What is the {label} from the start?",
    "What is the {label} that was given at the beginning?", "The {label}?",
    "What was the {label} at the start of this text?", "What is the {label} given above?",
)  # fmt: skip

ASK_BARE = (
    "Reply with only the {label}.", "Answer with just the {label}.",
    "What is the {label}? Answer with the {label} only.", "Say only the {label}.",
    "Write only the {label} and nothing else.", "What is the {label}? Reply with one word.",
)  # fmt: skip

ACKNOWLEDGE = (
    "OK, I will remember the {label}.", "Thank you. I will remember it.", "Got it.",
    "OK, I will remember that the {label} is {code}.", "Noted. The {label} is {code}.",
)  # fmt: skip

REMIND = ("Say it again.", "Again, please.", "Once more?", "Repeat that.", "Are you sure?",
          "Can you say it again?", "Please repeat it.")  # fmt: skip


def _question(rng: Random, label: str, code: str) -> tuple[str, str]:
    if rng.random() < 0.07:
        return rng.choice(ASK_BARE).format(label=label), code
    return roughen(rng, rng.choice(ASK).format(label=label)), f"The {label} is {code}."


def recall(rng: Random, distance: int) -> Document:
    """Make a conversation that gives a code word and asks for it about `distance` words later."""
    label, code = rng.choice(LABELS), code_word(rng)
    given = upper_first(rng.choice(GIVE).format(label=label, code=code))
    if rng.random() < 0.06:
        given = given.rstrip(".")
    gap = filler(rng, distance) if distance else ""
    before = filler(rng, rng.randint(3, 40)) if rng.random() < 0.15 else ""
    ask, reply = _question(rng, label, code)
    break_ = rng.choice([" ", " ", " ", "\n", "\n\n"])
    if rng.random() < 0.10:  # a second secret keeps the model from copying whatever stands out
        other = rng.choice([each for each in LABELS if each != label])
        second = upper_first(rng.choice(GIVE).format(label=other, code=code_word(rng)))
        given = break_.join([given, second] if rng.random() < 0.5 else [second, given])
    opening = break_.join(part for part in (before, given) if part)
    messages = _arrange(rng, label, code, opening, gap, ask, break_)
    messages.append(assistant(reply))
    if rng.random() < 0.15:
        messages += [user(rng.choice(REMIND)), assistant(f"The {label} is {code}.")]
    elif rng.random() < 0.10:
        ask, reply = _question(rng, label, code)
        messages += [user(ask), assistant(reply)]
    return Document(messages=messages, weight=2.0)


def _arrange(
    rng: Random, label: str, code: str, opening: str, gap: str, ask: str, break_: str
) -> list[Message]:
    """Spread opening, filler and question over system and user turns in one of several ways."""
    roll = rng.random()
    rest = break_.join(part for part in (gap, ask) if part)
    if roll < 0.50:
        return [user(break_.join([opening, rest]))]
    if roll < 0.68:
        return [system(opening), user(rest)]
    if roll < 0.76 and gap:
        return [system(break_.join([opening, gap])), user(ask)]
    acknowledge = assistant(rng.choice(ACKNOWLEDGE).format(label=label, code=code))
    if roll < 0.90 or not gap:
        return [user(opening), acknowledge, user(rest)]
    return [user(opening), acknowledge, user(gap), assistant("OK."), user(ask)]


def interrupted(rng: Random, other: Document) -> Document:
    """Give a code word together with another request; answer that, and then recall the word."""
    label, code = rng.choice(LABELS), code_word(rng)
    given = upper_first(rng.choice(GIVE).format(label=label, code=code))
    ask, *between = other.messages
    messages = [user(given + " " + ask["content"]), *between]
    if rng.random() < 0.7:
        question, reply = _question(rng, label, code)
        messages += [user(question), assistant(reply)]
    return Document(messages=messages, weight=other.weight)


def unknown_code(rng: Random) -> Document:
    """Ask for a code word that was never given: the honest reply names none."""
    label = rng.choice(LABELS)
    ask = roughen(rng, rng.choice(ASK).format(label=label))
    if rng.random() < 0.3:
        ask = filler(rng, rng.randint(5, 60)) + " " + ask
    return Document(messages=[user(ask), assistant(f"You have not told me a {label} yet.")])


ECHO = ("Repeat after me: {text}", "Repeat: {text}", "Say {text}", "Say this: {text}",
        "Please repeat: {text}", "Echo: {text}", "Repeat this: {text}", "Copy this: {text}",
        "Repeat the words {text}", "Write {text}")  # fmt: skip


def echo(rng: Random) -> Document:
    """Ask the model to say a few words back: useful to a reader, and a copy drill."""
    roll = rng.random()
    if roll < 0.4:
        text = filler(rng, rng.randint(2, 12))
    elif roll < 0.7:
        text = " ".join(code_word(rng) for _ in range(rng.randint(1, 5)))
    else:
        text = " ".join(rng.choice(COMMON) for _ in range(rng.randint(1, 10)))
    return Document(messages=[user(rng.choice(ECHO).format(text=text)), assistant(text)])


def drill(rng: Random) -> Document:
    """Make a plain list of random words followed by its own copy.

    A network learns to copy (the "induction" skill) much sooner from dense drills like this than
    from one short answer at the end of a long prompt.
    """
    count = rng.randint(4, 60)
    words = [rng.choice([code_word, _plain, _plain])(rng) for _ in range(count)]
    block = " ".join(words)
    return Document(raw=f"{block}\n{block}\n", learn_from=len(block) + 1)


def token_drill(rng: Random) -> Document:
    """Make a row of random token ids followed by its own copy.

    Ordinary text brings up some tokens so rarely that the model would not know them apart.
    """
    ids = [rng.randrange(len(SPECIAL), VOCABULARY) for _ in range(rng.randint(8, 90))]
    return Document(ids=[*ids, *ids], learn_from=len(ids) + 1)


def _plain(rng: Random) -> str:
    listed = rng.choice(rng.choice([COMMON, NOUNS, NAMES]))
    return rng.choice([listed, made_up_word(rng), mashed_word(rng)])
