"""Factories whose engines are TensorRT-LLM servers: real workers, launched and attached, over doubles."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml
from tests.e2e.completions import at_once, complete, metric, tokens
from tests.waiting import wait_until

from tokenmill.serve.engines.remote.child import free_ports
from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes

DOUBLE = "tokenmill.testing.trtllm_double"
BLOCK = 16

Up = Callable[..., RunningFactory]


def stage(role: str, replicas: int = 1, **fields: object) -> dict[str, object]:
    launched = {"engine_command": f"{sys.executable} -m {DOUBLE}"} if "attach" not in fields else {}
    own = {"name": role, "role": role, "replicas": replicas, "engine": "trtllm", "block_tokens": BLOCK}
    return {**own, **launched, **fields}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Bring factories up; all are stopped at the test's end."""
    running: list[RunningFactory] = []

    def start(*stages: dict[str, object], mode: str = "disaggregated") -> RunningFactory:
        text = yaml.safe_dump(
            {
                "apiVersion": "tokenmill/v1",
                "kind": "Factory",
                "metadata": {"name": "doubles"},
                "frontend": {"port": "PORT"},
                "router": {"policy": "kv", "prefill": "remote"},
                "stages": list(stages),
            }
        )
        folder = tmp_path / f"factory-{len(running)}"
        folder.mkdir()
        factory = RunningFactory.up(folder, text)
        running.append(factory)
        factory.wait_ready()
        factory.wait_for_mode(mode)
        expected = sum(int(str(each["replicas"])) for each in stages)
        wait_until(lambda: len(factory.worker_loads()) == expected, factory.log)
        return factory

    yield start
    assert [factory.stop() for factory in running] == [0] * len(running)


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    return [random.Random(f"{seed}/{n}").choices(range(8, 250), k=20 + 17 * n) for n in range(count)]


class Double:
    """A double's process, launched by a worker or by this test."""

    def __init__(self, process: psutil.Process, port: int) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"

    def record(self) -> dict:
        with urllib.request.urlopen(f"{self.url}/double", timeout=30) as answer:
            return json.load(answer)

    def spoil(self, **faults: object) -> None:
        request = urllib.request.Request(f"{self.url}/double", json.dumps(faults).encode())
        urllib.request.urlopen(request, timeout=30).close()


def doubles(factory: RunningFactory, kind: str) -> list[Double]:
    """Those of a factory that have had requests of a kind, or could: "prefill" runs without overlap."""
    found = []
    for child in psutil.Process(factory.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            command = child.cmdline()
            if DOUBLE not in command or "--port" not in command:
                continue
            options = yaml.safe_load(Path(command[-1]).read_text("utf-8"))
            role = "both"
            if "cache_transceiver_config" in options:
                role = "prefill" if options.get("disable_overlap_scheduler") else "decode"
            if role == kind:
                found.append(Double(child, int(command[command.index("--port") + 1])))
    return found


def kinds(of: list[Double], kind: str) -> int:
    return sum(double.record()["kinds"].get(kind, 0) for double in of)


def test_disaggregated_gives_the_tokens_of_one_server(up: Up) -> None:
    asked = prompts(8)
    sampled = {"temperature": 0.9, "seed": 11, "max_tokens": 12}
    one = up(stage("both"), mode="aggregated")
    greedy, drawn = at_once(one, asked), at_once(one, asked, **sampled)
    assert len({tuple(each) for each in greedy + drawn}) == 16
    (server,) = doubles(one, "both")
    assert server.record()["violations"] == []
    assert one.stop() == 0
    pair = up(stage("prefill", 2), stage("decode", 2))
    assert at_once(pair, asked) == greedy
    assert at_once(pair, asked, **sampled) == drawn
    givers, takers = doubles(pair, "prefill"), doubles(pair, "decode")
    assert (len(givers), len(takers)) == (2, 2)
    assert [double.record()["violations"] for double in (*givers, *takers)] == [[]] * 4
    assert kinds(givers, "context_only") == kinds(takers, "generation_only") == 16
    assert kinds(takers, "plain") == 2  # the trial at each start
    wait_until(lambda: sum(double.record()["caches_given"] for double in givers) == 16)
    assert metric(pair, "tokenmill_handoffs_lost_total") == 0


def test_a_handoff_that_fails_is_explained_and_counted(up: Up) -> None:
    asked = prompts(2)
    pair = up(stage("prefill"), stage("decode"))
    expected = at_once(pair, asked)
    (taker,) = doubles(pair, "decode")
    taker.spoil(completions=1, how="stream_error", only="generation_only")
    assert tokens(complete(pair, asked[0], "spoiled")) == expected[0]
    (choice,) = json.loads(pair.get("/v1/explain/spoiled")[1])["choices"]
    (attempt,) = choice["attempts"]
    assert attempt["handoff_failed"]["reason"] == "engine"
    assert "told to" in attempt["handoff_failed"]["error"]
    assert metric(pair, 'tokenmill_handoffs_lost_total{reason="engine"}') == 1
    assert tokens(complete(pair, asked[1])) == expected[1]


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_a_server_killed_under_load_loses_no_request(up: Up, role: str) -> None:
    asked = prompts(12)
    slow = {"TRTLLM_DOUBLE": '{"step_ms": 20}'}
    pair = up(stage("prefill", 2, engine_env=slow), stage("decode", 2, engine_env=slow))
    expected = at_once(pair, asked, max_tokens=60)
    kind = "context_only" if role == "prefill" else "generation_only"
    before = kinds(doubles(pair, role), kind)
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(at_once, pair, asked, max_tokens=60)
        wait_until(lambda: kinds(doubles(pair, role), kind) > before + 2)
        doubles(pair, role)[0].process.kill()
        assert again.result(120) == expected


def test_requests_go_where_the_servers_events_say(up: Up) -> None:
    """Every prefix is computed once in the whole factory, as usage tells."""
    factory = up(stage("both", 3), mode="aggregated")
    prefixes = [random.Random(seed).choices(range(8, 250), k=20 * BLOCK) for seed in range(4)]

    def cached(prefix: list[int], tail: int) -> int:
        usage = complete(factory, [*prefix, *[tail] * 7], max_tokens=2)["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    def known() -> int:
        return sum(json.loads(factory.get("/health")[1])["router"]["worker_blocks"].values())

    assert [cached(prefix, 1) for prefix in prefixes] == [0] * 4
    wait_until(lambda: known() >= 80)
    assert [cached(prefix, tail) for tail in (2, 3) for prefix in prefixes] == [20 * BLOCK] * 8


@pytest.fixture
def own_double(tmp_path: Path) -> Iterator[Callable[..., Double]]:
    """Start doubles that no worker owns."""
    running: list[subprocess.Popen[bytes]] = []

    def start(model: str, port: int, **options: object) -> Double:
        file = tmp_path / f"{port}.yaml"
        file.write_text(yaml.safe_dump(options), "utf-8")
        words = ["serve", model, "--port", str(port), "--host", "127.0.0.1", "--config", str(file)]
        process = subprocess.Popen([sys.executable, "-m", DOUBLE, *words], env={**os.environ})
        running.append(process)
        double = Double(psutil.Process(process.pid), port)
        wait_until(lambda: answers(double))
        return double

    def answers(double: Double) -> bool:
        with suppress(OSError):
            double.record()
            return True
        return False

    yield start
    for process in running:
        process.terminate()
    assert [process.wait(30) for process in running] == [0] * len(running)


def test_attached_servers(up: Up, own_double: Callable[..., Double], unused_ports: list[int]) -> None:
    """Started by somebody else; what they did not tell, the worker says plainly."""
    cache = {"tokens_per_block": BLOCK, "event_buffer_max_size": 1000}
    common = {
        "kv_cache_config": cache,
        "enable_iter_perf_stats": True,
        "cache_transceiver_config": {"backend": "UCX"},
        "max_seq_len": 2048,
    }
    giver = own_double("org/other", unused_ports[0], disable_overlap_scheduler=True, **common)
    taker = own_double("org/other", unused_ports[1], **common)
    pair = up(
        stage("prefill", attach=giver.url, max_model_len=2048),
        stage("decode", attach=taker.url, max_model_len=2048),
    )
    asked = prompts(4)
    given = at_once(pair, asked)
    assert kinds([taker], "generation_only") == 4
    taker.spoil(completions=4, how="error", only="generation_only")
    assert at_once(pair, asked) == given
    assert giver.record()["violations"] == taker.record()["violations"] == []
    with pytest.raises(urllib.error.HTTPError) as refused:
        complete(pair, asked[0], cache_salt="tenant")
    with refused.value as answer:
        assert answer.code == 400
        assert "cache_salt" in answer.read().decode()


@pytest.fixture
def unused_ports() -> list[int]:
    return free_ports(2)
