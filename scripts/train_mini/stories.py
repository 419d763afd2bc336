# ruff: noqa: SIM905  (word lists read best as they are)
"""Short stories and poems, put together from parts that fit each other in any choice.

They are here so that a long decode shows readable text. Each picks its hero, place, wish, trouble
and end on its own, so no two are quite the same.
"""

from __future__ import annotations

from random import Random

from .codewords import made_up_word
from .document import Document, chat, roughen, upper_first
from .words import COLORS, NAMES, NOUNS

HEROES = """
robot cat dog dragon fox rabbit mouse bear princess prince wizard astronaut pirate knight farmer
baker turtle bird whale owl train boat star cloud tree river computer token worker child girl boy
king queen teacher painter sailor penguin frog horse lion elephant bee snowman lamp clock ghost
monster witch giant fairy doctor detective gardener musician moon wind panda wolf kitten puppy
""".split()

TRAITS = "little brave curious kind clever shy old young quiet cheerful gentle tiny".split()

SETTINGS = (
    "in a small village by the sea", "at the edge of a deep forest", "in a house on a green hill",
    "in a busy city", "near a quiet lake", "in a valley full of flowers", "on a faraway island",
    "behind an old mill", "at the foot of a tall mountain", "in a town where it always rained",
)  # fmt: skip

WISHES = (
    ("to see the sea", "the way was long and nobody knew it"),
    ("to learn how to sing", "every song came out wrong"),
    ("to find a friend", "everyone was too busy to talk"),
    ("to fly above the clouds", "there were no wings to be found"),
    ("to find the lost key of the old tower", "the map was torn in two"),
    ("to bring light to the dark forest", "the lamp had gone out"),
    ("to bake the best bread in the land", "there was no flour left in the mill"),
    ("to reach the top of the mountain", "the snow was deep and the wind was cold"),
    ("to plant a garden", "the ground was dry and hard"),
    ("to write a letter to the moon", "there was nobody to carry it"),
)  # fmt: skip

HELPERS = (
    ("an old owl", "Take one small step at a time"),
    ("a friendly bird", "Look up and do not give up"),
    ("a wise turtle", "Go slowly, and you will arrive"),
    ("a young miller", "We can do it together"), ("a lost kitten", "I will show you the way"),
    ("a traveler with a red hat", "Ask, and listen well"),
    ("a small blue fish", "Follow the water"), ("a quiet gardener", "Good things need time"),
)  # fmt: skip

WORK = (
    "So they worked from morning until night.", "They walked for three days and three nights.",
    "They tried again and again, and each time it went a little better.",
    "Step by step, they came closer.", "They shared their bread and told each other stories.",
    "It was not easy, but they did not stop.",
)  # fmt: skip

ENDS = (
    "In the end the wish came true, and everyone in the place came to celebrate.",
    "At last it worked, and they laughed until the stars came out.",
    "When the sun came up, the wish had come true.",
    "And so it happened, just as they had hoped.",
)  # fmt: skip

LESSONS = (
    "From that day on, they were the best of friends.", "And they lived happily ever after.",
    "Nobody ever forgot that day.", "Since then, a small light burns in the window every night.",
)  # fmt: skip

STORY_ASKS = (
    "Tell me a story about {x}.", "Tell me a story about {x}.", "Write a story about {x}.",
    "Write a short story about {x}.", "Tell me a short story about {x}.", "Tell a story about {x}.",
    "Can you tell me a story about {x}?", "Please write a story about {x}.", "A story about {x}.",
    "I would like a story about {x}.", "Make up a story about {x}.", "Tell me a tale about {x}.",
    "Write me a story about {x}.", "Write a long story about {x}.", "Story about {x}",
    "Can you write a short story about {x}?", "Tell me a bedtime story about {x}.",
)  # fmt: skip

PLAIN_ASKS = ("Tell me a story.", "Tell a story.", "Write a story.", "Do you know a story?",
              "Tell me a short story.", "Can you tell me a story?", "Write a short story.",
              "Another story, please.", "Once upon a time")  # fmt: skip

POEM_ASKS = (
    "Write a poem about {x}.", "Write a short poem about {x}.", "Tell me a poem about {x}.",
    "Can you write a poem about {x}?", "A poem about {x}, please.", "Make a poem about {x}.",
    "Write me a poem about {x}.", "Please write a poem about {x}.", "Poem about {x}",
)  # fmt: skip

PLAIN_POEMS = ("Write a poem.", "Tell me a poem.", "Can you write a poem?", "Do you know a poem?")

COUPLETS = (
    ("It wakes when the morning is new,", "and smiles at the sky so blue."),
    ("It listens to wind and to rain,", "and hums the same tune again."),
    ("It dances along the bright day,", "and never gets lost on the way."),
    ("It waits by the door in the night,", "until the first hour of light."),
    ("The stars are its friends up above,", "they sing it a song full of love."),
    ("It carries a dream in its heart,", "and every new day is a start."),
    ("The river runs down to the sea,", "and nothing is ever as free."),
    ("The world may be big, it is small,", "yet there is a place for us all."),
    ("The mill wheel is turning around,", "it makes such a wonderful sound."),
    ("When evening comes quiet and deep,", "it closes its eyes and falls asleep."),
)  # fmt: skip


def article(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _subject(rng: Random) -> tuple[str, str, str]:
    """Return how the user names the hero, how the story brings it in, and the noun for later."""
    noun = rng.choice(HEROES) if rng.random() < 0.6 else rng.choice(NOUNS)
    if rng.random() < 0.08:
        noun = made_up_word(rng)
    roll = rng.random()
    if roll < 0.70:
        return article(noun), article(f"{rng.choice(TRAITS)} {noun}"), f"the {noun}"
    if roll < 0.80:
        tint = rng.choice([*COLORS, *TRAITS])
        return article(f"{tint} {noun}"), article(f"{tint} {noun}"), f"the {noun}"
    if roll < 0.90:
        return f"the {noun}", article(f"{rng.choice(TRAITS)} {noun}"), f"the {noun}"
    name = rng.choice(NAMES)
    return f"{article(noun)} named {name}", f"{article(noun)} named {name}", name


def story(rng: Random, intro: str, hero: str) -> str:
    """Tell one story of about a hundred words."""
    wish, trouble = rng.choice(WISHES)
    helper, advice = rng.choice(HELPERS)
    opening = rng.choice([
        f"Once upon a time there was {intro} who lived {rng.choice(SETTINGS)}.",
        f"Once upon a time, {rng.choice(SETTINGS)}, there lived {intro}.",
    ])  # fmt: skip
    middle = f"More than anything else, {hero} wanted {wish}, but {trouble}."
    moment = rng.choice(["day", "morning", "evening"])
    speaker = "the " + helper.split(" ", 1)[1]
    meeting = f'One {moment} {hero} met {helper}. "{advice}," said {speaker}.'
    closing = [rng.choice(WORK), rng.choice(ENDS), rng.choice(LESSONS)]
    return " ".join([opening, middle, meeting, *closing])


def poem(rng: Random, hero: str) -> str:
    """Write a poem of two or three rhyming couplets about the hero."""
    lines = [
        f"{upper_first(hero)} is the theme of my song,",
        "a short one that will not take long.",
    ]
    for first, second in rng.sample(COUPLETS, rng.randint(2, 3)):
        lines += [first, second]
    return "\n".join(lines)


def any_story(rng: Random) -> Document:
    """Draw a request for a story or a poem, with its answer."""
    asked, intro, hero = _subject(rng)
    roll = rng.random()
    if roll < 0.70:
        text = story(rng, intro, hero)
        ask = rng.choice(STORY_ASKS).format(x=asked)
    elif roll < 0.78:
        text, ask = story(rng, intro, hero), rng.choice(PLAIN_ASKS)
    elif roll < 0.96:
        text, ask = poem(rng, hero), rng.choice(POEM_ASKS).format(x=asked)
    else:
        text, ask = poem(rng, "the moon"), rng.choice(PLAIN_POEMS)
    if rng.random() < 0.05 and text.startswith("Once"):
        return Document(raw=text, weight=0.5)
    return chat(roughen(rng, ask), text, weight=0.5)
