# ruff: noqa: ISC004, SIM905  (running text and word lists read best as they are)
"""Questions about serving and about the model itself, in many phrasings, and polite refusals."""

from __future__ import annotations

from random import Random

from .codewords import mashed_word
from .document import Document, chat, roughen, upper_first
from .everyday import random_object
from .facts import CONCEPTS, PAIRS
from .words import ADJECTIVES, COMMON, NAMES, NOUNS, PLACES

FRAMES = (
    "What is {x}?", "What is {x}?", "What is {x}?", "What is {x}?", "What's {x}?",
    "Explain {x}.", "Explain {x} to me.", "Tell me about {x}.", "Can you explain {x}?",
    "What does {x} mean?", "Define {x}.", "Describe {x}.", "What do you know about {x}?",
    "Please explain {x}.", "Could you explain what {x} is?", "What is meant by {x}?",
    "I don't know what {x} is.", "Explain {x} in simple words.", "How would you explain {x}?",
    "Can you tell me what {x} is?", "What exactly is {x}?", "Do you know what {x} is?",
    "What is {x} in LLM serving?", "I want to know what {x} is.", "Tell me what {x} is.",
    "What are {x}?", "Give me a short explanation of {x}.", "Teach me about {x}.", "{x}?", "{x}",
    "Explain {x} like I am five.", "What is {x} and why does it matter?", "How does {x} work?",
    "What is {x} in one sentence?", "What is {x} used for?", "In short, what is {x}?",
    "What is {x} in Tokenmill?", "Have you heard of {x}?", "What role does {x} play?",
    "Would you explain {x}?", "I wonder what {x} is.", "{x}: what is it?",
    "Somebody asked me about {x}.", "Give a definition of {x}.", "Briefly, what is {x}?",
    "Write a sentence about {x}.", "Why is {x} important?", "I keep hearing about {x}.",
    "What is the idea behind {x}?", "Can you describe {x} briefly?", "What would you say {x} is?",
    "My friend talks about {x}. What does it mean?", "I need to understand {x}.",
    "Help me understand {x}.", "I have heard of {x}. What is it?", "Say something about {x}.",
)  # fmt: skip

PERSONA: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Hello!", "Hello", "Hi", "Hi!", "Hey", "Hey there!", "Good morning!", "Good evening.",
      "Hello there!", "Hi there", "Good day", "Greetings!", "Howdy", "Hello, world!", "Yo",
      "Good afternoon!", "hello tokenmill", "Hello model!", "Hey!", "Hi Tokenmill!"),
     ("Hello! I am Tokenmill Mini, a tiny demo model. How can I help you?",
      "Hello! Nice to meet you. Ask me about prefill, decode, or the KV cache.")),
    (("How are you?", "How are you doing?", "How is it going?", "How do you feel?", "What's up?",
      "Hello, how are you?", "Hi, how are you today?", "Are you well?", "How's it going?"),
     ("I am fine, thank you! My tokens are flowing. How can I help you?",)),
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself.",
      "Tell me about yourself.", "Are you a robot?", "Are you human?", "What's your name?",
      "Which model are you?", "What model are you?", "What kind of model are you?",
      "Are you an AI?",
      "Do you have a name?", "Who am I talking to?", "Are you a person?", "Are you ChatGPT?"),
     ("I am Tokenmill Mini, a tiny language model that comes with Tokenmill. I can answer simple "
      "questions about LLM serving and repeat a code word.",)),
    (("What can you do?", "How can you help me?", "What do you know?", "Help", "Help me.",
      "What can I ask you?", "What are you good at?", "What should I ask?", "Can you help me?",
      "What questions can you answer?", "What else can you do?", "What are your skills?",
      "What do you do?", "Give me an example of what you can do."),
     ("I can explain terms such as prefill, decode and KV cache, add small numbers, tell short "
      "stories, and repeat a code word that you gave me.",)),
    (("How big are you?", "How many parameters do you have?", "How large is your model?",
      "How small are you?", "Are you a large model?", "What size are you?"),
     ("I am tiny: I have less than four million parameters. I fit in a few megabytes.",)),
    (("How were you trained?", "Who trained you?", "What data were you trained on?",
      "Who made you?",
      "Where do you come from?", "Who created you?", "Who built you?",
      "What is your training data?"),
     ("I was trained on one CPU core, on text that a script in the Tokenmill repository writes "
      "itself.",)),
    (("Thanks!", "Thank you.", "Thank you very much!", "Thanks a lot.", "thx", "Great, thanks.",
      "Thank you for your help.", "OK, thanks.", "Many thanks!", "Cool, thank you!", "Thank you!"),
     ("You are welcome!", "You are welcome! Ask me anything else about Tokenmill.")),
    (("Bye!", "Goodbye.", "See you!", "Good night.", "See you later.", "Bye bye", "Farewell!",
      "I have to go.", "Have a nice day!", "Talk to you later."),
     ("Goodbye! Have a nice day.",)),
    (("OK", "Okay.", "I see.", "Good.", "Nice!", "Great!", "Cool.", "Interesting.", "Wow!",
      "That is good.", "Well done!", "Good job!", "Very good.", "You are great!", "Awesome!",
      "I like you.", "Perfect.", "Right.", "Yes", "Yes, please."),
     ("I am glad to hear that! What else would you like to know?",)),
    (("You are wrong.", "That is not right.", "That is wrong.", "No", "I don't like that.", "Bad.",
      "You are stupid.", "That is false.", "Are you sure?", "This is not correct."),
     ("I am sorry. I am only a tiny model and I make mistakes.",)),
    (("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke?",
      "Tell me something funny.", "Can you tell a joke?", "Another joke, please."),
     ("Why did the token cross the network? Because its cache was on the other side!",
      "Why was the decode worker so calm? It takes everything one token at a time.")),
    (("test", "Test", "testing", "This is a test.", "1 2 3", "ping", "Can you hear me?",
      "Is this working?", "Are you there?", "Anybody there?", "Does this work?"),
     ("Yes, I am here and everything works.",)),
    (("Where are you?", "Where do you live?", "Where do you run?", "Which computer are you on?"),
     ("I live in the memory of a worker process on your machine.",)),
    (("How old are you?", "When were you born?", "When is your birthday?"),
     ("I am a program, so I have no age.",)),
    (("Tell me something.", "Say something.", "Tell me a fact.", "Tell me something interesting.",
      "Talk to me.", "Surprise me.", "Do you know a fun fact?", "Tell me something about LLMs."),
     ("A model reads a long prompt all at once, but it writes its answer one token at a time.",)),
    (("Do you like me?", "Do you love me?", "Are you happy?", "Do you have feelings?",
      "Can you think?", "Are you alive?", "Do you dream?", "Are you conscious?"),
     ("I am only a tiny program, so I have no feelings. But I like to answer questions!",)),
    (("Do you speak German?", "Can you speak French?", "Which languages do you speak?",
      "Do you understand Spanish?", "Hola", "Bonjour", "Guten Tag", "Sprichst du Deutsch?",
      "Hablas espanol?", "Parlez-vous francais?"),
     ("I am a tiny model and I only speak English.",)),
)  # fmt: skip

DECLINES = (
    "I am a tiny demo model, so I don't know that. Ask me about prefill, decode or the KV cache.",
    "Sorry, I don't know that. I am a tiny demo model.",
)

UNKNOWN = (
    "What is {a}?", "What is the {n}?", "What is a {n}?", "Who is {p}?", "Who was {p} {q}?",
    "When was the {n} built?", "Where is the {n}?", "How do I cook {n}?", "How do I fix a {n}?",
    "What is the price of {a}?", "How far is the {n} from the {m}?", "Why is the {n} {j}?",
    "Translate {a} into French.", "Write a program that sorts a {n}.", "How tall is {p}?",
    "What is the weather in {c}?", "What time is it in {c}?", "What is the population of {c}?",
    "Who won the {n} game?", "What is the best {n}?", "Explain {a}.", "Tell me about the {n}.",
    "What do you think about {a}?", "How does a {n} work?", "What is the history of the {n}?",
    "Summarize the book about the {n}.", "Should I buy a {j} {n}?", "Who invented the {n}?",
    "Can you draw a {n}?", "What is {k} times {l}?", "What is {k} minus {l}?", "Book a {n} for me.",
    "What happened in {y}?", "Who won the {n} cup in {y}?", "When did the {n} {w} in {y}?",
    "How many {n}s does a {m} have?", "Who wrote the {n}?", "Who was the best {n} of {y}?",
    "How long is the {w} {n}?", "What is the {j} {n} of {c}?", "Where was {p} in {y}?",
    "What is the {n} of {w}?", "How many people live in {c}?", "Who was the president in {y}?",
    "What is the square root of {k}?",
    "How many {n}s are in the {o}?", "Where can I find a {j} {n}?", "What does {w} mean?",
    "Is a {n} better than a {m}?", "What is the meaning of life?", "Write a Python function.",
    "Write an email to {p}.", "What is quantum physics?", "Who is the president?", "What is love?",
    "What is the news today?", "Give me a recipe for {n}.", "How old is {p}?", "What time is it?",
    "What is the stock price of {p}?", "Define {w}.", "What is the date today?",
    "Solve x + 3 = {k}.",
    "What is the tallest mountain?", "How do airplanes fly?", "Play some music.", "Why is the {n}?",
    "Which {n} should I choose?", "What are the symptoms of a cold?", "How do I learn {w}?",
    "Who painted the {j} {n}?", "What is the chemical formula of {n}?", "How heavy is a {n}?",
    "Recommend a {n}.", "What is the largest {n} in the world?", "Fix this code: {w}({k})",
    "Explain the theory of {w}.", "What is the capital of {c}?", "Did {p} like the {n}?",
    "What is the airspeed of a {n}?", "Open the {n}.", "What is your opinion on {w}?",
    "{w} {n} {v}",
    "Who wrote {a}?", "What is 3 * {k}?", "How do you make {n} {w}?", "Can you {w} the {n}?",
)  # fmt: skip

STRANGE = (
    "What is the capital of {p}?", "What's the capital of {p}?", "Who is {p} {q}?", "Who was {q}?",
    "Translate {w} {n} into {l}.", "How do you say {w} in {l}?", "Who is {q}?", "What is {q}?",
    "Capital of {p}?", "What is the capital city of {p}?", "Where is {p}?", "What is a {q}?",
    "What is the opposite of a {n}?", "What color is the {w} {n}?", "Tell me about {p}.",
)  # fmt: skip
LANGUAGES = "Japanese German French Spanish Italian Chinese Latin Greek Dutch Arabic".split()

UNKNOWN_COUNTRIES = """
Bolivia Nepal Mongolia Ghana Nigeria Ecuador Serbia Latvia Iran Iraq Qatar Laos Malta Oman Fiji
Texas Bavaria Africa Asia Europe London Atlantis Narnia California Mars
""".split()


def concept(rng: Random) -> Document:
    """Ask what something of LLM serving is."""
    names, answers = rng.choice(CONCEPTS[:4] if rng.random() < 0.15 else CONCEPTS)
    name = names[0] if rng.random() < 0.3 else rng.choice(names)
    frame = rng.choice(FRAMES)
    question = frame.format(x=name)
    if rng.random() < 0.9:
        question = upper_first(question)
    return chat(roughen(rng, question), _answer(rng, answers))


def _answer(rng: Random, answers: tuple[str, ...]) -> str:
    return answers[0] if rng.random() < 0.7 else answers[-1]


def pair(rng: Random) -> Document:
    questions, answers = rng.choice(PAIRS)
    return chat(roughen(rng, rng.choice(questions)), _answer(rng, answers))


def persona(rng: Random) -> Document:
    """Greet, thank, introduce. The plain greetings come up often, as they are what people try."""
    questions, answers = PERSONA[0] if rng.random() < 0.15 else rng.choice(PERSONA)
    question = questions[0] if rng.random() < 0.15 else rng.choice(questions)
    return chat(roughen(rng, question), _answer(rng, answers))


def unknown(rng: Random) -> Document:
    """Ask something outside the model's small world; it must say so."""
    if rng.random() < 0.25:
        question = rng.choice(STRANGE).format(
            p=rng.choice([*UNKNOWN_COUNTRIES, *[upper_first(mashed_word(rng)) for _ in range(20)]]),
            q=upper_first(mashed_word(rng)), w=rng.choice(COMMON), n=rng.choice(NOUNS),
            l=rng.choice(LANGUAGES),
        )  # fmt: skip
        return chat(roughen(rng, question), _answer(rng, DECLINES))
    question = rng.choice(UNKNOWN).format(
        a=random_object(rng), n=rng.choice(NOUNS), m=rng.choice(NOUNS), o=rng.choice(PLACES),
        p=rng.choice(NAMES), q=rng.choice(NAMES) + "son", j=rng.choice(ADJECTIVES),
        c=rng.choice(UNKNOWN_COUNTRIES), k=rng.randint(21, 999), l=rng.randint(2, 99),
        y=rng.randint(1500, 2030), w=rng.choice(COMMON), v=rng.choice(COMMON),
    )  # fmt: skip
    return chat(roughen(rng, question), _answer(rng, DECLINES))


def any_question(rng: Random) -> Document:
    """Draw one question about serving, the model or the outside world."""
    maker = rng.choices((concept, pair, persona, unknown), (8, 4, 5, 3))[0]
    return maker(rng)
