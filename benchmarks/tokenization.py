"""What a long chat costs before it is routed: rendering, and tokenization cold, by words, and with a new
last turn.

    PYTHONPATH=src python -m benchmarks.tokenization

A byte-level tokenizer of 32,000 tokens is made first. Times are CPU time of the calling thread, except for
the stall: how late a task on the same event loop is that wants to run each millisecond, while another
request's prompt of 100,000 tokens is encoded. All ways give the same ids, which is looked at. Writes
benchmarks/results/tokenization.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import tokenizers
import uvloop

from benchmarks.machine import machine, write_result
from benchmarks.side_by_side.model import lexicon, write_model
from tokenmill.serve.frontend.openai.schema import ChatRequest
from tokenmill.serve.text.encoder import Encoder
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer

Messages = list[dict[str, str]]

TURNS = 60
TURN_WORDS = 165
CHATS = 30
LONG_WORDS = 100_000
GREEK = "Το γρήγορο καφέ αλεπού πηδά πάνω από το τεμπέλικο σκυλί "  # noqa: RUF001


class Words:
    """Text out of the corpus's words."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._words, self._weights = lexicon()

    def text(self, count: int) -> str:
        """Return that many words."""
        return " ".join(self._chance.choices(self._words, self._weights, k=count))

    def chat(self, turns: int) -> Messages:
        """Return a chat, the user's turn last."""
        roles = ("user", "assistant")
        return [{"role": roles[at % 2], "content": self.text(TURN_WORDS)} for at in range(turns)]


def timed(work: Callable[[], object]) -> float:
    """Milliseconds of this thread's CPU."""
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1e3


def long_chats(backend: tokenizers.Tokenizer, template: ChatTemplate) -> dict[str, float]:
    """Encode chats of about 10,000 tokens, and each again with two more turns."""
    words = Words(3)
    found: dict[str, list[float]] = {}

    def note(name: str, work: Callable[[], object]) -> None:
        found.setdefault(name, []).append(timed(work))

    decoder = msgspec.json.Decoder(ChatRequest)
    encoder = Encoder(backend, threads=1, cache_bytes=16 * 2**20)
    without = Encoder(backend, threads=1, cache_bytes=0)
    without.encode(template.render(words.chat(TURNS * 5)), add_special_tokens=False)  # usual words are known
    for _ in range(CHATS):
        chat = words.chat(TURNS)
        text = template.render(chat)
        expected = backend.encode(text, add_special_tokens=False).ids
        longer = [*chat, *words.chat(2)]
        longer_text = template.render(longer)
        body = json.dumps({"messages": longer}).encode()
        note(
            "library_pipeline_ms",
            lambda t=text: backend.encode_batch_fast([t], add_special_tokens=False)[0].ids,
        )
        note("by_words_ms", lambda t=text: without.encode(t, add_special_tokens=False))
        note("first_time_ms", lambda t=text: encoder.encode(t, add_special_tokens=False))
        note("again_with_a_new_turn_ms", lambda t=longer_text: encoder.encode(t, add_special_tokens=False))
        note("render_ms", lambda c=longer: template.render(c))
        note("json_decode_ms", lambda b=body: decoder.decode(b))
        if encoder.encode(text, add_special_tokens=False).ids != expected:
            raise AssertionError("the ways to encode disagree")
    encoder.close()
    without.close()
    return {"tokens": len(expected), **{name: round(statistics.median(ms), 3) for name, ms in found.items()}}


async def stall(encode: Callable[[], Awaitable[object]]) -> dict[str, float]:
    """Encode once; returns how long it took and the longest wait of a task that wants to run each
    millisecond."""
    lags: list[float] = []

    async def tick() -> None:
        while True:
            wanted = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            lags.append((time.perf_counter() - wanted) * 1e3)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.05)
    lags.clear()
    began = time.perf_counter()
    await encode()
    took_ms = (time.perf_counter() - began) * 1e3
    await asyncio.sleep(0.005)
    ticking.cancel()
    return {"took_ms": round(took_ms, 1), "longest_stall_ms": round(max(lags), 2)}


async def stalls(backend: tokenizers.Tokenizer, tokenizer: Tokenizer) -> dict[str, object]:
    """A prompt of 100,000 tokens, on the loop and as the frontend does it, in ASCII and in Greek."""
    found: dict[str, object] = {}
    words = Words(7)
    for name, text in (("ascii", words.text(LONG_WORDS)), ("greek", GREEK * (LONG_WORDS // 40))):

        async def on_the_loop(text: str = text) -> object:
            return backend.encode(text, add_special_tokens=False).ids

        async def as_served(text: str = text) -> object:
            return await tokenizer.encode_async(text, add_special_tokens=False)

        found[name] = {
            "tokens": len(backend.encode(text, add_special_tokens=False).ids),
            "on_the_loop": await stall(on_the_loop),
            "as_served": await stall(as_served),
            "as_served_again": await stall(as_served),
        }
    return found


def main() -> None:
    """Measure, print, write."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    about = machine()
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as folder:
        model = write_model(Path(folder) / "model")
        tokenizer, template = Tokenizer.load(model), ChatTemplate.load(model)
        backend = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        assert template is not None
        result: dict[str, object] = {"long_chat": long_chats(backend, template)}
        result["stall"] = uvloop.run(stalls(backend, tokenizer))
        tokenizer.close()
    print(json.dumps(result, indent=1))
    print(f"written: {write_result('tokenization', result, about)}")


if __name__ == "__main__":
    main()
