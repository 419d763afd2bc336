"""Tokens a second of the embedded engine against ``transformers`` generate: same weights, batch and run.

    python -m benchmarks.embedded_engine [--rounds N] [--threads 1,2] [--batches 1,16]

An 80 M parameter random Llama, 64 prompt tokens, 96 output tokens, greedy. Our side is the executor driven by
the step scheduler, prefix cache off; theirs is one ``generate`` call on the whole batch. The two alternate
within each round, so that whatever else the machine does meets both. "equal" counts sequences with the same
tokens: all in float32; in bfloat16 the two round differently. Writes results/embedded_engine.json.
"""

import argparse
import gc
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

from benchmarks.machine import machine, spread, write_result
from tokenmill.decide.batching.scheduler import Scheduler
from tokenmill.decide.batching.types import (
    BatchingConfig,
    Emit,
    RequestArrived,
    SequenceRequest,
    StepExecuted,
)
from tokenmill.protocol.generate import Sampling
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.engines.torch.executor import TorchExecutor
from tokenmill.serve.engines.torch.settings import TorchSettings
from tokenmill.testing.checkpoints import make_checkpoint

PROMPT_TOKENS = 64
OUTPUT_TOKENS = 96
BLOCK_TOKENS = 16


class Cost(NamedTuple):
    """What a batch took: seconds on the wall, and of all threads on the CPU (other load disturbs it less)."""

    wall_s: float
    cpu_s: float


def now() -> Cost:
    return Cost(time.perf_counter(), time.process_time())


def since(started: Cost) -> Cost:
    return Cost(time.perf_counter() - started.wall_s, time.process_time() - started.cpu_s)


def prompts(batch: int) -> list[list[int]]:
    chooser = random.Random(batch)
    return [[chooser.randrange(6, 4096) for _ in range(PROMPT_TOKENS)] for _ in range(batch)]


def ours(executor: TorchExecutor, asked: list[list[int]]) -> tuple[Cost, list[list[int]]]:
    """What it took, and the tokens by request."""
    config = BatchingConfig(
        total_blocks=executor.memory.blocks,
        max_model_len=1024,
        block_tokens=BLOCK_TOKENS,
        token_budget=2048,
        prefix_cache=False,
    )
    scheduler = Scheduler(config)
    got: dict[str, list[int]] = {}
    started = now()
    for index, prompt in enumerate(asked):
        name = RequestId(f"r{index}")
        got[name] = []
        executor.admit(name, Sampling(max_tokens=OUTPUT_TOKENS, temperature=0.0), len(prompt))
        request = SequenceRequest(request_id=name, prompt=prompt, max_tokens=OUTPUT_TOKENS)
        scheduler.handle(RequestArrived(request), 0.0)
    while chunks := (plan := scheduler.next_step(0.0).plan).chunks:
        assert chunks
        sampled = executor.execute(plan).sampled
        for told in scheduler.handle(StepExecuted(plan, sampled), 0.0):
            if isinstance(told, Emit):
                got[told.request_id].append(told.token)
    elapsed = since(started)
    for name in got:
        executor.retire(RequestId(name))
    return elapsed, list(got.values())


def theirs(model: transformers.PreTrainedModel, asked: list[list[int]]) -> tuple[Cost, list[list[int]]]:
    ids = torch.tensor(asked)
    mask = torch.ones_like(ids)
    started = now()
    out = model.generate(ids, attention_mask=mask, max_new_tokens=OUTPUT_TOKENS, do_sample=False)
    return since(started), out[:, PROMPT_TOKENS:].tolist()


def line(found: dict[str, Any]) -> str:
    middle = {key: value["median"] for key, value in found.items() if isinstance(value, dict)}
    return (
        f"tokenmill {middle['tokenmill_tokens_per_s']:7.1f} tok/s, generate "
        f"{middle['generate_tokens_per_s']:7.1f} (x{middle['ratio']:.2f}); CPU ms a token "
        f"{middle['tokenmill_cpu_ms_per_token']:6.2f} and {middle['generate_cpu_ms_per_token']:6.2f} "
        f"(x{middle['cpu_ratio']:.2f}); equal {found['equal_sequences']}"
    )


def cell(
    folder: Path, dtype: str, threads: int, batches: list[int], rounds: int
) -> dict[str, dict[str, object]]:
    settings = TorchSettings(
        model=folder,
        dtype=dtype,
        device="cpu",
        threads=threads,
        block_tokens=BLOCK_TOKENS,
        kv_blocks=512,
        max_model_len=1024,
    )
    executor = TorchExecutor(settings)
    started = time.perf_counter()
    executor.load()
    load_s = time.perf_counter() - started
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    results: dict[str, dict[str, object]] = {}
    for batch in batches:
        asked = prompts(batch)
        ours(executor, asked)
        theirs(model, asked)
        mine: list[Cost] = []
        generate: list[Cost] = []
        for index in range(rounds):
            if index % 2:
                cost_theirs, tokens_theirs = theirs(model, asked)
                cost_ours, tokens_ours = ours(executor, asked)
            else:
                cost_ours, tokens_ours = ours(executor, asked)
                cost_theirs, tokens_theirs = theirs(model, asked)
            mine.append(cost_ours)
            generate.append(cost_theirs)
        tokens = batch * OUTPUT_TOKENS
        same = sum(a == b for a, b in zip(tokens_ours, tokens_theirs, strict=True))
        pairs = list(zip(mine, generate, strict=True))
        found = {
            "tokenmill_tokens_per_s": spread([tokens / c.wall_s for c in mine], 1),
            "generate_tokens_per_s": spread([tokens / c.wall_s for c in generate], 1),
            "ratio": spread([theirs.wall_s / ours.wall_s for ours, theirs in pairs], 2),
            "tokenmill_cpu_ms_per_token": spread([c.cpu_s * 1000 / tokens for c in mine], 2),
            "generate_cpu_ms_per_token": spread([c.cpu_s * 1000 / tokens for c in generate], 2),
            "cpu_ratio": spread([theirs.cpu_s / ours.cpu_s for ours, theirs in pairs], 2),
            "equal_sequences": f"{same} of {batch}",
            "load_s": round(load_s, 2),
        }
        name = f"{dtype} threads={threads} batch={batch}"
        results[name] = found
        print(f"{name:32} {line(found)}", flush=True)
    executor.close()
    del model, executor
    gc.collect()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batches", default="1,16")
    parser.add_argument("--dtypes", default="bfloat16,float32")
    arguments = parser.parse_args()
    about = machine()
    print(f"{about['cpu']}, {about['cores']} cores, load {about['load_average_at_start']:.2f}")
    batches = [int(b) for b in arguments.batches.split(",")]
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder) / "llama-80m", "llama", size="80m", dtype="bfloat16")
        for dtype in arguments.dtypes.split(","):
            for threads in arguments.threads.split(","):
                results |= cell(checkpoint, dtype, int(threads), batches, arguments.rounds)
    what: dict[str, object] = {
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "rounds": arguments.rounds,
    }
    what["omp_wait_policy"] = os.environ.get("OMP_WAIT_POLICY", "unset")
    print(write_result("embedded_engine", {"what": what, "results": results}, about))


if __name__ == "__main__":
    main()
