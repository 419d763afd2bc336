"""The text room on the token path: detokenizing, encoding, rendering, and how long the event loop is held.

    PYTHONPATH=src python -m benchmarks.text [--tokenizer FOLDER]

Without FOLDER a byte-level tokenizer is trained on made-up text first. Writes benchmarks/results/text.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from benchmarks.machine import machine, write_result
from tokenmill.serve.text.detokenizer import Detokenizer
from tokenmill.serve.text.stop import StopStrings
from tokenmill.serve.text.template import ChatTemplate
from tokenmill.serve.text.tokenizer import Tokenizer

LONG_CHARS = 400_000
SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
TEMPLATE = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant<|end|>\n\n' }}{%- endif %}
"""


def prose(words: int) -> str:
    rng = random.Random(11)
    syllables = ["ka", "ter", "lo", "min", "sa", "the", "ing", "ro", "be", "on", "ti", "mu", "é", "st"]
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(4000)]
    weights = [1 / (rank + 5) for rank in range(len(lexicon))]
    chosen = rng.choices(lexicon, weights, k=words)
    return " ".join(
        word + (rng.choice([".", ",", "\n", "!"]) if not at % 9 else "") for at, word in enumerate(chosen)
    )


def train_byte_level(folder: Path, text: str) -> None:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [text], trainers.BpeTrainer(vocab_size=8000, initial_alphabet=alphabet, show_progress=False)
    )
    backend.save(str(folder / "tokenizer.json"))


def make_byte_fallback(folder: Path, text: str) -> None:
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([text], trainers.BpeTrainer(vocab_size=7000, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    contents = list(dict.fromkeys(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *learned["vocab"]]))
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={content: at for at, content in enumerate(contents)},
            merges=[tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.save(str(folder / "tokenizer.json"))


def best_s(work: Callable[[], object], repeats: int = 7) -> float:
    """Seconds of the fastest of some runs: what the work costs without the neighbours."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def detokenize(tokenizer: Tokenizer, tokens: list[int], burst: int, stops: list[str] | None = None) -> None:
    detokenizer, search = Detokenizer(tokenizer), StopStrings(stops or [])
    for at in range(0, len(tokens), burst):
        search.push(detokenizer.push(tokens[at : at + burst]))
    search.push(detokenizer.finish())


def decode_stream(tokenizer: Tokenizer, tokens: list[int]) -> None:
    """The library's own incremental decoder, for comparison; it takes one token at a time."""
    stream = decoders.DecodeStream(skip_special_tokens=True)
    for token in tokens:
        stream.step(tokenizer._backend, token)  # noqa: SLF001


async def worst_gap_ms(work: Callable[[], Awaitable[object]], times: int = 5) -> float:
    """Longest time for which the loop did not come round while ``work`` ran, less the tick's own 0.5 ms."""
    worst_s, done = 0.0, False

    async def tick() -> None:
        nonlocal worst_s
        last = time.perf_counter()
        while not done:
            await asyncio.sleep(0.0005)
            now = time.perf_counter()
            worst_s, last = max(worst_s, now - last - 0.0005), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.02)
    for _ in range(times):
        await work()
        await asyncio.sleep(0)
    done = True
    await ticking
    return worst_s * 1e3


def measure_streams(name: str, tokenizer: Tokenizer, text: str) -> dict[str, float]:
    tokens = tokenizer.encode(text, add_special_tokens=False)[:20_000]
    each = 1e6 / len(tokens)
    prompt = tokens[:10_000]
    stops = ["\n\nUser:", "<|end|>", "###"]
    return {
        f"{name}: detokenize, 1 token a push, us/token": each
        * best_s(lambda: detokenize(tokenizer, tokens, 1)),
        f"{name}: detokenize, 64 tokens a push, us/token": each
        * best_s(lambda: detokenize(tokenizer, tokens, 64)),
        f"{name}: detokenize and 3 stops, 1 token a push, us/token": each
        * best_s(lambda: detokenize(tokenizer, tokens, 1, stops)),
        f"{name}: tokenizers.DecodeStream, us/token": each * best_s(lambda: decode_stream(tokenizer, tokens)),
        f"{name}: new stream after a 10k-token prompt, us": 1e6
        * best_s(lambda: Detokenizer(tokenizer, prefix=prompt), 50),
    }


def measure_prompts(tokenizer: Tokenizer, text: str) -> dict[str, float]:
    figures = {}
    tokens = tokenizer.encode(text, add_special_tokens=False)
    for size in (200, 2_000, 10_000):
        prompt = tokenizer.decode(tokens[:size])
        figures[f"encode {size} tokens, us"] = 1e6 * best_s(
            lambda prompt=prompt: tokenizer.encode(prompt, add_special_tokens=False), 20
        )
    template = ChatTemplate({"default": TEMPLATE}, special_tokens={"bos_token": "<s>"})
    for turns in (1, 9):
        messages = [{"role": ("user", "assistant")[at % 2], "content": text[:800]} for at in range(turns)]
        figures[f"render {turns} messages of 800 characters, us"] = 1e6 * best_s(
            lambda messages=messages: template.render(messages), 200
        )
    return figures


async def measure_loop(tokenizer: Tokenizer, text: str) -> dict[str, float]:
    prompt = text[:LONG_CHARS]

    async def inline() -> None:
        tokenizer._backend.encode(prompt, add_special_tokens=False)  # noqa: SLF001

    return {
        f"worst loop gap, encode_async of {LONG_CHARS} characters, ms": await worst_gap_ms(
            lambda: tokenizer.encode_async(prompt, add_special_tokens=False)
        ),
        f"worst loop gap, encode on the loop of {LONG_CHARS} characters, ms": await worst_gap_ms(inline),
        f"encode_async of {LONG_CHARS} characters, ms": 1e3
        * best_s(lambda: tokenizer.encode(prompt, add_special_tokens=False), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer.json")
    asked = parser.parse_args().tokenizer
    about = machine()
    text = prose(90_000)
    with tempfile.TemporaryDirectory() as made:
        fallback = Path(made) / "fallback"
        fallback.mkdir()
        make_byte_fallback(fallback, text[:200_000])
        if asked is None:
            train_byte_level(Path(made), text[:200_000])
        main_tokenizer, other = Tokenizer.load(asked or Path(made)), Tokenizer.load(fallback)
        figures = measure_streams("byte-level" if asked is None else asked.name, main_tokenizer, text)
        figures |= measure_streams("byte-fallback", other, text)
        figures |= measure_prompts(main_tokenizer, text)
        figures |= asyncio.run(measure_loop(main_tokenizer, text))
        main_tokenizer.close()
        other.close()
    for name, figure in figures.items():
        print(f"{figure:12.3f}  {name}")
    used = str(asked or "byte-level BPE of 8000 tokens, trained here")
    rounded = {name: round(figure, 3) for name, figure in figures.items()}
    write_result("text", {"tokenizer": used, "figures": rounded}, about)


if __name__ == "__main__":
    main()
