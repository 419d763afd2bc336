"""Child processes: started, watched, ended; ports that do not collide."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import psutil
import pytest

from tokenmill.serve.engines.remote.child import Child, free_ports


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


async def test_its_death_is_told_with_its_last_words() -> None:
    child = Child("engine", python("print('all fine'); print('Error: no memory'); print('x'); exit(3)"), {})
    await child.start()
    async with asyncio.timeout(20):
        assert await child.died() == "engine ended with exit status 3: Error: no memory"
    await child.stop()


async def test_a_signal_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    child = Child(
        "engine",
        python("import os, time; print(os.environ['WORD'], flush=True); time.sleep(60)"),
        {"WORD": "up"},
    )
    await child.start()
    async with asyncio.timeout(20):
        while "[engine] up" not in capsys.readouterr().err:
            await asyncio.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        assert (await child.died()).startswith("engine ended with signal SIGKILL")
    await child.stop()


async def test_stopping_ends_its_children_too() -> None:
    code = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
"""
    child = Child("engine", python(code), {})
    await child.start()
    async with asyncio.timeout(20):
        while not (grandchildren := psutil.Process(child.pid).children()):
            await asyncio.sleep(0.01)
        await child.stop()
        while any(
            process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in grandchildren
        ):
            await asyncio.sleep(0.01)


async def test_a_program_that_is_not_there() -> None:
    child = Child("engine", ["/no/such/program"], {})
    await child.start()
    async with asyncio.timeout(20):
        assert "exit status 1" in await child.died()
    await child.stop()


def test_free_ports_are_different() -> None:
    ports = free_ports(5, neighbours=3)
    taken = {port + offset for port in ports for offset in range(3)}
    assert len(ports) == 5
    assert len(taken) == 15
