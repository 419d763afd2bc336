"""``tokenmill profile`` on real engines: embedded in this process, and behind HTTP."""

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.profiles.test_profile_file import a_profile

from tokenmill.cli import main
from tokenmill.clock import SystemClock
from tokenmill.decide.perf.profile import Knee
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.errors import ConfigError, TokenmillError, WorkerFailed, WorkerLost
from tokenmill.operate.profile import plot
from tokenmill.operate.profile.command import knee_words
from tokenmill.operate.profile.engine_probe import EngineProbe
from tokenmill.operate.profile.http_probe import HttpProbe
from tokenmill.operate.profile.machine import this_machine, versions
from tokenmill.operate.profile.points import Point
from tokenmill.profiles.profile_file import load_profile
from tokenmill.serve.engines.opening import open_engine
from tokenmill.spec.process import WorkerConfig

SMALL = ["--max-prefill", "64", "--max-batch", "4", "--max-context", "128", "--repeats", "1"]


def test_the_sim_engine_is_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.json"
    slow = ["--engine-arg", "fixed_ms=1", "--engine-arg", "prefill_token_ms=0.02"]
    assert main(["profile", "--engine", "sim", *SMALL, *slow, "--out", str(out)]) == 0
    profile = load_profile(out)
    assert (profile.engine, profile.method) == ("sim", "steps")
    assert profile.machine.cores > 0
    assert profile.versions["tokenmill"]
    assert {each.sequences for each in profile.measurements} >= {0, 1, 2, 4}
    assert {each.new_tokens for each in profile.measurements} >= {0, 16, 24, 32, 48, 64}
    # A loaded machine sleeps longer than told, never shorter.
    least = LinearStepTime(fixed_ms=1, prefill_token_ms=0.02)
    for each in profile.measurements:
        work = (each.new_tokens, each.prefill_context, each.sequences, each.decode_context)
        assert each.step_ms >= 0.99 * least.mixed_ms(*work)
        assert each.low_ms <= each.step_ms <= each.high_ms
    said = capsys.readouterr().out
    assert "saturate" in said
    assert str(out) in said


def engine_probe(timeout_s: float = 60, **arguments: str) -> EngineProbe:
    clock = SystemClock()
    config = WorkerConfig(engine="sim", engine_args=arguments, kv_blocks=64, prefix_cache=False)
    return EngineProbe(open_engine(config, None, clock), clock, timeout_s=timeout_s)


async def test_an_engine_tells_its_steps() -> None:
    probe = engine_probe(fixed_ms="2", prefill_token_ms="0.01")
    facts = await probe.start()
    try:
        run = await probe.run(Point(2, 20, 3))
    finally:
        await probe.close()
    assert (facts.method, facts.kv_tokens) == ("steps", 64 * 16)
    assert sum(step.new_tokens for step in run.steps) == 40
    assert sum(step.sequences for step in run.steps) == 2 * 2
    assert [sum(arrival.tokens for arrival in arrivals) for arrivals in run.arrivals] == [3, 3]
    assert run.steps[0].before_ms is None
    assert all(step.before_ms is not None for step in run.steps[1:])


async def test_a_request_that_an_engine_refuses_ends_the_run() -> None:
    probe = engine_probe(speedup="0")
    await probe.start()
    try:
        with pytest.raises(WorkerFailed, match="the engine failed"):
            await probe.run(Point(1, 64 * 16 + 1, 1))
        assert len((await probe.run(Point(1, 16, 1))).arrivals) == 1
    finally:
        await probe.close()


async def test_a_run_has_a_deadline() -> None:
    probe = engine_probe(timeout_s=30, speedup="0")
    await probe.start()
    probe._timeout_s = 0.0
    try:
        with pytest.raises(TokenmillError, match="longer than 0 s"):
            await probe.run(Point(1, 16, 200))
    finally:
        await probe.close()


class FakeServer:
    """Answers completions with as many tokens as were asked for, some of them two to an event."""

    def __init__(self) -> None:
        self.bodies: list[dict] = []
        self.refuse = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(
                    (int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length")), 0
                )
                body = await reader.readexactly(length)
                if head.startswith(b"GET /v1/models"):
                    self._say(writer, b'{"data": [{"id": "fake", "owned_by": "test", "max_model_len": 512}]}')
                elif self.refuse:
                    self._say(writer, b'{"error": "no"}', status=b"400 Bad Request")
                else:
                    self._stream(writer, json.loads(body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _say(self, writer: asyncio.StreamWriter, body: bytes, status: bytes = b"200 OK") -> None:
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))

    def _stream(self, writer: asyncio.StreamWriter, asked: dict) -> None:
        self.bodies.append(asked)
        left, events = asked["max_tokens"], b""
        while left:
            ids = [7] * min(2, left)
            events += b"data: %s\n\n" % json.dumps({"choices": [{"text": "a", "token_ids": ids}]}).encode()
            left -= len(ids)
        self._say(writer, events + b"data: [DONE]\n\n")


@pytest.fixture
async def server() -> AsyncIterator[tuple[FakeServer, str]]:
    fake = FakeServer()
    listening = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    async with listening:
        yield fake, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


async def test_what_answers_at_an_address_is_measured_from_outside(server: tuple[FakeServer, str]) -> None:
    fake, url = server
    probe = HttpProbe(url + "/v1", SystemClock(), timeout_s=30)
    try:
        facts = await probe.start()
        run = await probe.run(Point(3, 32, 5))
    finally:
        await probe.close()
    assert (facts.model, facts.engine, facts.method, facts.max_model_len) == ("fake", "test", "arrivals", 512)
    assert [sum(arrival.tokens for arrival in arrivals) for arrivals in run.arrivals] == [5, 5, 5]
    asked = fake.bodies[-1]
    assert (len(asked["prompt"]), asked["ignore_eos"], asked["stream"]) == (32, True, True)


async def test_refusals_are_told(server: tuple[FakeServer, str]) -> None:
    fake, url = server
    probe = HttpProbe(url, SystemClock(), model="other", timeout_s=30)
    try:
        with pytest.raises(WorkerFailed, match="it lists fake"):
            await probe.start()
        fake.refuse = True
        with pytest.raises(WorkerFailed, match="refused with 400"):
            await probe.run(Point(1, 8, 1))
    finally:
        await probe.close()


async def test_nobody_at_the_address() -> None:
    probe = HttpProbe("http://127.0.0.1:9", SystemClock(), timeout_s=30)
    with pytest.raises(WorkerLost):
        await probe.start()
    await probe.close()


@pytest.mark.parametrize(
    ("flags", "what"),
    [
        (["--max-prefill", "1"], "max_prefill"),
        (["--repeats", "0"], "repeats"),
        (["--gpu", "h20o"], "Did you mean"),
        (["--url", "nonsense"], "address"),
    ],
)
def test_bad_flags_are_named(flags: list[str], what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--engine", "sim", *flags]) == 2
    assert what in capsys.readouterr().err


def test_the_knee_is_put_in_words() -> None:
    knee = Knee(tokens=400, low=350, high=460, tokens_per_s=12_345.6)
    assert "400 tokens (350 to 460) saturates" in knee_words(knee)
    assert "12,346 tokens/s" in knee_words(knee)
    far = Knee(tokens=400, low=400, high=400, tokens_per_s=1, reached=False)
    assert "not saturated by 400 tokens," in knee_words(far)


def test_the_machine_is_named() -> None:
    machine = this_machine()
    assert machine.cores > 0
    assert machine.memory_gib > 0
    assert "python" in versions()


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="the extra plot is not installed")
def test_the_picture(tmp_path: Path) -> None:
    plot.draw(a_profile(), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="cannot be written"):
        plot.draw(a_profile(), tmp_path / "no" / "p.png")


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is not None, reason="the extra plot is installed")
def test_without_the_extra_a_picture_is_refused_before_anything_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.json"
    assert main(["profile", "--engine", "sim", "--plot", "p.png", "--out", str(out)]) == 2
    assert "tokenmill[plot]" in capsys.readouterr().err
    assert not out.exists()
