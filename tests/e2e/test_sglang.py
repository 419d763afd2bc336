"""Factories whose engines are SGLang servers: real workers, launched and attached, over SGLang doubles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from tests.e2e.completions import at_once, complete, metric, tokens
from tests.waiting import wait_until

from tokenmill.serve.engines.remote.child import free_ports
from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes

DOUBLE = f"{sys.executable} -m tokenmill.testing.sglang_double"
LAUNCHED = f"engine: sglang, engine_command: '{DOUBLE}'"

PREFIX = 1600
"""Prompt tokens that are worth a way to who has them, whatever else is going on there."""

Up = Callable[..., RunningFactory]


def factory_file(*stages: str, prefill: str = "auto") -> str:
    lines = "\n".join(f"  - {{{stage}}}" for stage in stages)
    head = "apiVersion: tokenmill/v1\nkind: Factory\nmetadata: {name: doubles}\nfrontend: {port: PORT}\n"
    return f"{head}router: {{policy: kv, prefill: {prefill}}}\nstages:\n{lines}\n"


def stage(role: str, replicas: int = 1, extra: str = "") -> str:
    more = f", {extra}" if extra else ""
    return f"name: {role}, role: {role}, replicas: {replicas}, {LAUNCHED}{more}"


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    """Bring factories up; all are stopped at the test's end."""
    running: list[RunningFactory] = []

    def start(file: str, mode: str) -> RunningFactory:
        factory = RunningFactory.up(tmp_path, file)
        running.append(factory)
        factory.wait_ready()
        factory.wait_for_mode(mode)
        return factory

    yield start
    assert [factory.stop() for factory in running] == [0] * len(running)


def prompts(count: int) -> list[list[int]]:
    return [[300 + n, *range(400, 400 + 20 * (n + 1))] for n in range(count)]


def doubles(factory: RunningFactory, mode: str) -> list[psutil.Process]:
    """The doubles' processes in a mode."""
    found = []
    for child in psutil.Process(factory.process.pid).children(recursive=True):
        try:
            command = child.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if "tokenmill.testing.sglang_double" not in command or "--port" not in command:
            continue
        own = (
            command[command.index("--disaggregation-mode") + 1]
            if "--disaggregation-mode" in command
            else "null"
        )
        if own == mode:
            found.append(child)
    return found


def ask(double: psutil.Process, path: str, body: object = None) -> dict:
    command = double.cmdline()
    url = f"http://127.0.0.1:{command[command.index('--port') + 1]}{path}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
        return json.loads(answer.read() or b"{}")


def journal(double: psutil.Process) -> dict:
    return ask(double, "/double/journal")


def rooms(processes: list[psutil.Process]) -> list[int]:
    return sorted(asked["bootstrap_room"] for process in processes for asked in journal(process)["generate"])


def test_disaggregated_gives_the_tokens_of_one_server(up: Up) -> None:
    asked = prompts(8)
    sampled = {"temperature": 0.9, "seed": 11, "max_tokens": 12}
    one = up(factory_file(stage("both")), "aggregated")
    greedy, drawn = at_once(one, asked), at_once(one, asked, **sampled)
    (server,) = doubles(one, "null")
    assert journal(server)["refused"] == []
    assert one.stop() == 0
    pair = up(factory_file(stage("prefill", 2), stage("decode", 2)), "disaggregated")
    wait_until(lambda: len(pair.worker_loads()) == 4, pair.log)
    assert at_once(pair, asked) == greedy
    assert at_once(pair, asked, **sampled) == drawn
    givers, takers = doubles(pair, "prefill"), doubles(pair, "decode")
    assert [journal(process)["refused"] for process in (*givers, *takers)] == [[]] * 4
    used = rooms(givers)
    assert used == rooms(takers)
    assert len(set(used)) == len(used) == 16


def test_one_token_needs_no_pair_and_log_probabilities_come(up: Up) -> None:
    pair = up(factory_file(stage("prefill"), stage("decode")), "disaggregated")
    (giver,), (taker,) = doubles(pair, "prefill"), doubles(pair, "decode")
    whole = tokens(complete(pair, prompts(1)[0]))
    assert tokens(complete(pair, prompts(1)[0], max_tokens=1)) == whole[:1]
    assert journal(giver)["generate"][-1]["bootstrap_host"] == "2.2.2.2"
    assert len(journal(taker)["generate"]) == 1
    complete(pair, prompts(1)[0], response_format={"type": "json_object"})
    for server in (giver, taker):
        assert journal(server)["generate"][-1]["sampling_params"]["json_schema"] == '{"type": "object"}'
    scored = complete(pair, prompts(1)[0], logprobs=2, echo=True, max_tokens=4)["choices"][0]["logprobs"]
    assert len(scored["token_logprobs"]) == len(prompts(1)[0]) + 4
    assert scored["token_logprobs"][0] is None
    assert all(value < 0 for value in scored["token_logprobs"][1:])


def test_prefixes_are_found_by_the_servers_events(up: Up) -> None:
    factory = up(factory_file(stage("both", 3)), "aggregated")
    wait_until(lambda: len(factory.worker_loads()) == 3, factory.log)
    heads = [[310 + group] * PREFIX for group in range(6)]

    def cached(tail: int) -> list[int]:
        answers = [complete(factory, [*head, 500 + tail], max_tokens=2) for head in heads]
        return [answer["usage"]["prompt_tokens_details"]["cached_tokens"] for answer in answers]

    assert cached(0) == [0] * 6
    known = lambda: json.loads(factory.get("/health")[1])["router"]["worker_blocks"]  # noqa: E731
    wait_until(lambda: sum(known().values()) >= 6 * PREFIX // 16, lambda: str(known()))
    assert cached(1) == [PREFIX] * 6
    assert cached(2) == [PREFIX] * 6


def test_a_failed_handoff_is_served_by_a_worker_that_needs_no_partner(up: Up) -> None:
    stages = stage("prefill"), stage("decode"), stage("both")
    factory = up(factory_file(*stages, prefill="remote"), "mixed")
    wait_until(lambda: len(factory.worker_loads()) == 3, factory.log)
    asked = prompts(10)
    expected = at_once(factory, asked)
    (giver,) = doubles(factory, "prefill")
    (alone,) = doubles(factory, "null")
    assert len(journal(giver)["generate"]) > 0
    ask(giver, "/double/mishap", {"kind": "fail_transfer", "times": 1000})
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda ids: complete(factory, ids), asked))
    assert [tokens(answer) for answer in answers] == expected
    assert metric(factory, 'tokenmill_migrations_total{phase="prefill",reason="handoff"}') >= 1
    assert metric(factory, 'tokenmill_handoffs_lost_total{reason="transfer"}') >= 1
    told = [json.loads(factory.get(f"/v1/explain/{answer['id']}")[1]) for answer in answers]
    assert any("KV transfer failed" in json.dumps(each) for each in told)
    assert len(journal(alone)["generate"]) > 0


def test_a_pair_may_try_again(up: Up) -> None:
    factory = up(factory_file(stage("prefill"), stage("decode")), "disaggregated")
    expected = tokens(complete(factory, prompts(1)[0]))
    (giver,), (taker,) = doubles(factory, "prefill"), doubles(factory, "decode")
    ask(giver, "/double/mishap", {"kind": "fail_transfer"})
    assert tokens(complete(factory, prompts(1)[0])) == expected
    ask(taker, "/double/mishap", {"kind": "refuse", "status": 500})
    assert tokens(complete(factory, prompts(1)[0])) == expected
    assert metric(factory, 'tokenmill_migrations_total{phase="prefill",reason="handoff"}') == 2
    assert journal(giver)["refused"] == journal(taker)["refused"] == []


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_killing_a_server_under_load_loses_no_request(up: Up, mode: str) -> None:
    factory = up(factory_file(stage("prefill", 2), stage("decode", 2)), "disaggregated")
    wait_until(lambda: len(factory.worker_loads()) == 4, factory.log)
    asked = prompts(12)
    expected = at_once(factory, asked, max_tokens=200)
    before = {process: len(journal(process)["generate"]) for process in doubles(factory, mode)}

    def asked_again() -> list[psutil.Process]:
        return [process for process, count in before.items() if len(journal(process)["generate"]) > count]

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = [pool.submit(complete, factory, ids, max_tokens=200) for ids in asked]
        wait_until(asked_again, lambda: "nothing came to any server")
        asked_again()[0].kill()
        assert [tokens(answer.result(90)) for answer in answers] == expected


def test_a_lonely_decode_worker_waits_for_a_new_partner(up: Up) -> None:
    """Its server cannot compute a prompt: nothing is asked of it until the prefill worker is back."""
    factory = up(factory_file(stage("prefill"), stage("decode")), "disaggregated")
    expected = tokens(complete(factory, prompts(1)[0]))
    (giver,), (taker,) = doubles(factory, "prefill"), doubles(factory, "decode")
    giver.kill()
    wait_until(lambda: factory.get("/ready")[0] == 503, factory.log)
    factory.wait_ready()
    factory.wait_for_mode("disaggregated")
    assert tokens(complete(factory, prompts(1)[0])) == expected
    assert journal(taker)["refused"] == []


def test_running_servers_are_attached_to(up: Up, tmp_path: Path) -> None:
    model = up(factory_file(stage("both")), "aggregated")
    (server,) = doubles(model, "null")
    expected = at_once(model, prompts(4))
    command = server.cmdline()
    path = command[command.index("--model-path") + 1]
    started: list[subprocess.Popen[bytes]] = []
    urls = {}
    for mode in ("prefill", "decode"):
        port, bootstrap = free_ports(2)
        words = [
            "--model-path",
            path,
            "--port",
            str(port),
            "--page-size",
            "16",
            "--disaggregation-mode",
            mode,
        ]
        words += ["--disaggregation-bootstrap-port", str(bootstrap)] if mode == "prefill" else []
        with (tmp_path / f"{mode}.log").open("wb") as log:
            started.append(subprocess.Popen([*DOUBLE.split(), *words], stderr=log, env=dict(os.environ)))
        urls[mode] = f"http://127.0.0.1:{port}"
    try:
        stages = [
            f"name: {mode}, role: {mode}, engine: sglang, attach: '{url}'" for mode, url in urls.items()
        ]
        assert model.stop() == 0
        attached = up(factory_file(*stages), "disaggregated")
        assert at_once(attached, prompts(4)) == expected
        assert attached.stop() == 0
    finally:
        for process in started:
            process.terminate()
            process.wait(20)
