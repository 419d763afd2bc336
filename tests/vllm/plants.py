"""Factories of vLLM workers on a CPU with few cores, and what tests ask of them and their servers."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import psutil
from tests.e2e.streams import all_ready, start_factory, until

from tokenmill.clock import SystemClock
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.vllm.engine import VllmEngine
from tokenmill.serve.engines.vllm.plan import VllmOptions
from tokenmill.testing.running_factory import RunningFactory

from .servers import Server

SITE = Path(__file__).resolve().parents[2] / "scripts" / "vllm_cpu"

BLOCK = 32
"""vLLM's CPU attention wants multiples of this."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(SITE),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_HOST_IP": "127.0.0.1",
}

ONE_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
"""Scheduler and model in the server's process: with few cores several processes only wait for each other."""

START_S = 400.0

KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


def transfer_config(role: str, lease_s: int = 30) -> str:
    """NIXL as vLLM has it, with a progress thread that does not spin."""
    return json.dumps(
        {
            "kv_connector": "NixlConnector",
            "kv_connector_module_path": "nixl_calm",
            "kv_role": KV_ROLES[role],
            "kv_connector_extra_config": {"kv_lease_duration": lease_s},
        }
    )


def stage(
    python: str, role: str, replicas: int, *, parallel: dict | None = None, lease_s: int = 30, **fields
) -> dict:
    arguments = {"enforce_eager": "true"}
    environment = dict(ENVIRONMENT)
    if not parallel:
        arguments["distributed_executor_backend"] = "uni"
        environment |= ONE_PROCESS
    if role in KV_ROLES and fields.get("kv_connector") != "tokenmill":
        arguments["kv_transfer_config"] = transfer_config(role, lease_s)
    return {
        "name": role,
        "role": role,
        "replicas": replicas,
        "engine": "vllm",
        "engine_python": python,
        "engine_args": arguments,
        "engine_env": environment,
        "parallel": parallel or {},
        "dtype": "float32",  # in bfloat16 another batch may round another way
        "block_tokens": BLOCK,
        "kv_memory_mb": 128,
        "max_model_len": 4096,
        "drain_timeout_s": 5,
        "lease_s": lease_s,
        **fields,
    }


def launched(python: str, model: Path, role: Role, folder: Path, **fields) -> VllmEngine:
    """An engine that launches its server, without a factory around it. ``fields``: of its stage."""
    folder.mkdir()
    declared = stage(python, role.value, 1, **fields)
    kept = ("dtype", "block_tokens", "kv_memory_mb", "max_model_len", "kv_connector", "lease_s")
    return VllmEngine(
        VllmOptions(
            model=str(model),
            model_name="m",
            role=role,
            engine_python=python,
            engine_args=declared["engine_args"],
            engine_env=declared["engine_env"],
            run_dir=str(folder),
            **{name: declared[name] for name in kept if name in declared},
        ),
        SystemClock(),
    )


def plant_spec(
    python: str,
    model: Path,
    *,
    prefill: int = 0,
    decode: int = 0,
    both: int = 0,
    policy: str = "kv",
    prefill_where: str = "remote",
    prefill_args: dict | None = None,
    every_args: dict | None = None,
    **fields,
) -> dict:
    """What ``tokenmill up`` is given. ``every_args``: engine_args of all stages."""
    counts = {"prefill": prefill, "decode": decode, "both": both}
    stages = [stage(python, role, count, **fields) for role, count in counts.items() if count]
    for each in stages:
        each["engine_args"] |= every_args or {}
        if each["role"] == "prefill":
            each["engine_args"] |= prefill_args or {}
    return {
        "metadata": {"name": "vllm"},
        "model": {"name": "m", "path": str(model)},
        "router": {"policy": policy, "prefill": prefill_where},
        "frontend": {"worker_wait_s": 120},
        "migration": {"max_attempts": 6},
        "stages": stages,
    }


class Plant:
    """A running factory. ``counts``: its workers by role."""

    def __init__(self, folder: Path, spec: dict) -> None:
        self.folder = folder
        self.spec = spec
        self.counts = {each["role"]: each["replicas"] for each in spec["stages"]}
        self.factory: RunningFactory = start_factory(folder, spec)

    def wait_ready(self) -> None:
        """Wait until every worker is there; on a busy machine a server takes minutes to start."""
        self.factory.wait_ready(START_S)
        ready = partial(all_ready, self.factory, **self.counts)
        asyncio.run(until(ready, self.factory.log, START_S))

    def stop(self) -> int:
        return self.factory.stop()

    def servers(self, role: str) -> list[Server]:
        """The vLLM servers behind the workers of a role."""
        found = []
        for worker in self.factory.workers(role):
            for child in worker.children():
                words = child.cmdline()
                if "--port" in words:
                    found.append(Server(int(words[words.index("--port") + 1]), child))
        return found

    def total(self, role: str, metric: str) -> float:
        """A counter over all servers of a role."""
        return sum(server.metric(metric) for server in self.servers(role))

    def explain(self, name: str) -> dict:
        (choice,) = json.loads(self.factory.get(f"/v1/explain/{name}")[1])["choices"]
        return choice

    def worker_of(self, server: Server) -> psutil.Process:
        parent = server.process.parent()
        assert parent is not None
        return parent


def prompts(count: int, seed: object, lengths: Sequence[int] = (40, 100, 333, 700)) -> list[list[int]]:
    """Prompts that all differ, in their first token on."""
    rng = random.Random(f"prompts {seed}")
    return [
        [300 + index, *rng.choices(range(300, 4000), k=rng.choice(lengths) - 1)] for index in range(count)
    ]


def greedy(prompt: list[int], max_tokens: int = 24, **fields) -> dict:
    return {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True, **fields}
