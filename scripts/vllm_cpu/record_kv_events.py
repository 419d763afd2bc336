"""Records what real vLLM servers say of their caches, for tests that replay it.

    PYTHONPATH=src python scripts/vllm_cpu/record_kv_events.py VLLM_PYTHON [CASE ...]

Writes tests/serve/engines/kv_events/recorded/CASE.json: the requests, and after each of them the messages
that came on the KV event sockets, byte by byte. Needs the extras torch (to make checkpoints) and vllm.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import zmq

from tokenmill.clock import SystemClock
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.remote.child import Child, free_ports
from tokenmill.serve.engines.remote.http_client import HttpClient
from tokenmill.serve.engines.remote.options import Parallelism
from tokenmill.serve.engines.remote.readiness import HealthCheck, wait_until_healthy
from tokenmill.serve.engines.vllm.plan import LaunchPlan, Ports, VllmOptions, plan_launch, ranks_of
from tokenmill.serve.engines.vllm.server import ask
from tokenmill.testing.checkpoints import make_checkpoint

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "serve" / "engines" / "kv_events" / "recorded"

BLOCK = 32
BLOCKS = 40
"""So few that prompts push each other out."""

CASES: dict[str, tuple[Any, int]] = {
    "llama": ("llama", 1),
    "qwen3": ("qwen3", 1),
    "gpt_oss": ("gpt_oss", 1),
    "data_parallel": ("llama", 2),
}
"""Architecture and data-parallel ranks."""

QUIET_S = 1.0
"""Messages come some milliseconds after the answer."""

RESET = "reset"


def requests(ranks: int) -> list[dict[str, Any]]:
    """What is asked in turn: new prompts, equal ones, branches, salted ones, enough to evict, a reset."""
    rng = random.Random(7)

    def tokens(count: int) -> list[int]:
        return rng.choices(range(300, 4000), k=count)

    long, shared = tokens(300), tokens(3 * BLOCK)
    asked: list[dict[str, Any]] = [
        {"prompt": long, "max_tokens": 4},
        {"prompt": long, "max_tokens": 4},
        {"prompt": [*long[: 4 * BLOCK], *tokens(70)], "max_tokens": 2},
        {"prompt": [*shared, *tokens(20)], "max_tokens": 40},
        {"prompt": [*shared, *tokens(20)], "max_tokens": 2, "cache_salt": "tenant"},
        {"prompt": [*shared, *tokens(50)], "max_tokens": 2, "cache_salt": "tenant"},
        {"prompt": tokens(20), "max_tokens": 2},
        *({"prompt": tokens(400), "max_tokens": 2} for _ in range(3)),
        {"prompt": long, "max_tokens": 2},
        {RESET: True, "prompt": [*shared, *tokens(40)], "max_tokens": 2},
    ]
    return [{**each, "rank": index % ranks} for index, each in enumerate(asked)]


class Recorder:
    """Reads the sockets of all ranks."""

    def __init__(self, plan: LaunchPlan) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets = []
        for source in plan.sources:
            socket = self._context.socket(zmq.SUB)
            socket.setsockopt(zmq.SUBSCRIBE, b"")
            socket.connect(source.events)
            self._sockets.append(socket)
        self._replays = [source.replay for source in plan.sources]

    async def messages(self) -> list[dict[str, Any]]:
        """Return what has come, once nothing comes any more."""
        found = []
        quiet_s = 0.0
        while quiet_s < QUIET_S:
            await asyncio.sleep(0.05)
            quiet_s += 0.05
            for rank, socket in enumerate(self._sockets):
                while socket.poll(0):
                    _, number, payload = socket.recv_multipart()
                    found.append(_message(rank, number, payload))
                    quiet_s = 0.0
        return found

    async def replayed(self) -> list[dict[str, Any]]:
        """Return what the replay sockets tell from the first message on."""
        found = []
        for rank, endpoint in enumerate(self._replays):
            assert endpoint is not None
            socket = self._context.socket(zmq.DEALER)
            socket.connect(endpoint)
            socket.send_multipart((b"", (0).to_bytes(8, "big")))
            while socket.poll(5000):
                frames = socket.recv_multipart()
                if int.from_bytes(frames[-2], "big", signed=True) < 0:
                    break
                found.append(_message(rank, frames[-2], frames[-1]))
            socket.close(linger=0)
        return found

    def close(self) -> None:
        """Close the sockets."""
        self._context.destroy(linger=0)


def _message(rank: int, number: bytes, payload: bytes) -> dict[str, Any]:
    sequence = int.from_bytes(number, "big")
    return {"rank": rank, "sequence": sequence, "payload": base64.b64encode(payload).decode()}


async def record(case: str, python: str, folder: Path) -> dict[str, Any]:
    """Run one server through all requests. Cancelled: it is stopped."""
    ranks = CASES[case][1]
    options = _options(case, python, folder)
    plan = plan_launch(options, Ports(*free_ports(4, neighbours=ranks_of(options.parallel))))
    child, client = Child(case, plan.command, plan.environment), HttpClient(plan.url)
    await child.start()
    try:
        await wait_until_healthy(client, child, SystemClock(), 300, HealthCheck())
        facts = await ask(client, "m", plan.sources)
        recorder = Recorder(plan)
        try:
            steps = [await _step(client, recorder, each) for each in requests(ranks)]
            replayed = await recorder.replayed()
        finally:
            recorder.close()
    finally:
        await client.close()
        await child.stop()
    return {
        "vllm": facts.version,
        "block_tokens": BLOCK,
        "ranks": ranks,
        "steps": steps,
        "replayed": replayed,
    }


def _options(case: str, python: str, folder: Path) -> VllmOptions:
    architecture, ranks = CASES[case]
    model = make_checkpoint(folder / case, architecture, size="5m", sliding_window=128)
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    environment |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_HOST_IP": "127.0.0.1"}
    return VllmOptions(
        model=str(model),
        model_name="m",
        role=Role.BOTH,
        engine_python=python,
        engine_args={"enforce_eager": "true"},
        engine_env=environment,
        parallel=Parallelism(dp=ranks),
        run_dir=str(folder),
        block_tokens=BLOCK,
        kv_blocks=BLOCKS,
        kv_memory_mb=64,
        max_model_len=512,
    )


async def _step(client: HttpClient, recorder: Recorder, asked: dict[str, Any]) -> dict[str, Any]:
    if asked.pop(RESET, False):
        reply = await client.request("POST", "/reset_prefix_cache", timeout_s=30)
        assert reply.status == 200, reply
        asked["cleared_before"] = True
    fields = {name: value for name, value in asked.items() if name not in ("rank", "cleared_before")}
    body = {"model": "m", "temperature": 0, "ignore_eos": True, "return_token_ids": True, **fields}
    headers = (("x-data-parallel-rank", str(asked["rank"])),)
    reply = await client.request(
        "POST", "/v1/completions", body=json.dumps(body).encode(), headers=headers, timeout_s=120
    )
    assert reply.status == 200, reply
    output = json.loads(reply.body)["choices"][0]["token_ids"]
    return {**asked, "output": output, "messages": await recorder.messages()}


def main() -> int:
    parser = argparse.ArgumentParser(description="record KV events of real vLLM servers")
    parser.add_argument("python", help="the Python of an environment with vLLM")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            content = asyncio.run(record(case, options.python, Path(folder)))
        file = FOLDER / f"{case}.json"
        file.write_text(json.dumps(content, separators=(",", ":")) + "\n")
        count = sum(len(step["messages"]) for step in content["steps"])
        print(f"{file.name}: {len(content['steps'])} requests, {count} messages, {file.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
