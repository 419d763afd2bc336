"""Real ``vllm serve`` processes on a CPU with few cores, and what they themselves report.

Exists so that all comparisons run on servers started in the same way. It must not know who talks to them.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.real_vllm.running import Running, get, post, running, wait_for
from tokenmill.serve.engines.remote.child import free_ports

MODEL_NAME = "m"
BLOCK_TOKENS = 32
"""vLLM's CPU attention wants multiples of this."""

START_TIMEOUT_S = 240.0

SITE = Path(__file__).resolve().parents[2] / "scripts" / "vllm_cpu"

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(SITE),
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # with few cores several processes only wait for each other
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # for /reset_prefix_cache
}

KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}


@dataclass(frozen=True)
class Wanted:
    """A server. ``role``: "both", "prefill" or "decode". ``arguments``: further words of its command line."""

    role: str = "both"
    kv_memory_mb: int = 128
    max_sequences: int = 64
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Server:
    """A running one."""

    wanted: Wanted
    port: int
    events: str
    replay: str
    process: Running = field(repr=False)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def metric(self, name: str) -> float:
        """A counter of its ``/metrics``, over all labels."""
        text = get(f"{self.url}/metrics")
        return sum(float(v) for v in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def forget_prefixes(self) -> None:
        """Empty its prefix cache; nothing may be running."""
        post(f"{self.url}/reset_prefix_cache", {})


def command(python: str, model: Path, wanted: Wanted, ports: Sequence[int]) -> list[str]:
    """What is run. ``ports``: of the server, its events and their replay."""
    events = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": f"tcp://*:{ports[1]}",
        "replay_endpoint": f"tcp://*:{ports[2]}",
    }
    words = [python, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--host", "127.0.0.1"]
    words += ["--port", str(ports[0]), "--served-model-name", MODEL_NAME, "--max-model-len", "4096"]
    words += ["--enforce-eager", "--distributed-executor-backend", "uni", "--block-size", str(BLOCK_TOKENS)]
    words += ["--kv-cache-memory-bytes", str(wanted.kv_memory_mb << 20), "--enable-prompt-tokens-details"]
    words += ["--max-num-seqs", str(wanted.max_sequences), "--kv-events-config", json.dumps(events)]
    if wanted.role in KV_ROLES:  # vLLM's own connector, with a progress thread that does not spin
        nixl = {"kv_connector": "NixlConnector", "kv_connector_module_path": "nixl_calm"}
        words += ["--kv-transfer-config", json.dumps({**nixl, "kv_role": KV_ROLES[wanted.role]})]
    return [*words, *wanted.arguments]


@contextlib.contextmanager
def serving(python: str, model: Path, wanted: Sequence[Wanted], folder: Path) -> Iterator[list[Server]]:
    """Run these servers, all at once; gives them in their order when all are up."""
    with contextlib.ExitStack() as stack:
        ports = free_ports(4 * len(wanted))
        servers = []
        for number, one in enumerate(wanted):
            mine = ports[4 * number : 4 * number + 4]
            side = {
                "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
                "VLLM_NIXL_SIDE_CHANNEL_PORT": str(mine[3]),
            }
            process = stack.enter_context(
                running(
                    command(python, model, one, mine),
                    {**ENVIRONMENT, **side},
                    folder / f"vllm-{one.role}-{number}.log",
                )
            )
            endpoints = [f"tcp://127.0.0.1:{port}" for port in mine[1:3]]
            servers.append(Server(one, mine[0], *endpoints, process))
        for server in servers:
            _wait_until_up(server)
        yield servers


def _wait_until_up(server: Server) -> None:
    wait_for(lambda: bool(get(f"{server.url}/v1/models")), [server.process], START_TIMEOUT_S)


@dataclass(frozen=True)
class Hits:
    """Prompt tokens asked for and found in prefix caches, as the servers count them."""

    queried: float
    found: float

    @classmethod
    def of(cls, servers: Sequence[Server]) -> Hits:
        """Add up over servers."""
        return cls(
            sum(server.metric("vllm:prefix_cache_queries_total") for server in servers),
            sum(server.metric("vllm:prefix_cache_hits_total") for server in servers),
        )

    def share_since(self, before: Hits) -> float:
        """The share found since then."""
        queried = self.queried - before.queried
        return (self.found - before.found) / queried if queried else 0.0
