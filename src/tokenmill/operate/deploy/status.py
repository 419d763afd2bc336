"""``tokenmill status``: what runs on this machine, as a table or as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tokenmill.errors import TokenmillError
from tokenmill.operate.deploy.commands import named
from tokenmill.operate.deploy.control import ControlRequest, PlantStatus, ask
from tokenmill.operate.deploy.plant import State
from tokenmill.operate.deploy.state import StateFolder, state_folders, state_root

_HEALTH_TIMEOUT_S: Final = 2.0
_MAX_HEALTH_BYTES: Final = 1024 * 1024
_STYLES: Final = {State.READY: "green", State.FAILED: "red", State.WAITING: "yellow"}


def status(target: str | None, *, as_json: bool) -> int:
    """Show all factories, or one. Raises TokenmillError if that one does not run."""
    if target is not None and not named(target).running:
        raise TokenmillError(f'"{named(target).name}" is not running')
    states = [named(target)] if target else state_folders(state_root(os.environ))
    plants = [plant for state in states if (plant := _ask(state)) is not None]
    stale = [state.name for state in states if state.stale]
    if as_json:
        rows = [{**msgspec.to_builtins(plant), "health": health(plant.urls)} for plant in plants]
        sys.stdout.write(json.dumps({"factories": rows, "stale": stale}, indent=2) + "\n")
        return 0
    if not plants:
        sys.stdout.write("nothing is running\n")
    for plant in plants:
        _print(plant)
    for name in stale:
        sys.stdout.write(f"{name}: its supervisor was killed; the next start cleans up\n")
    return 0


def health(urls: Sequence[str]) -> dict[str, Any]:
    """Ask the first front door that answers for its view of the workers; empty if none does."""
    for url in urls:
        with contextlib.suppress(OSError, ValueError):
            request = urllib.request.Request(f"{url}/health")  # noqa: S310  the URL is our own
            with urllib.request.urlopen(request, timeout=_HEALTH_TIMEOUT_S) as reply:  # noqa: S310
                answer = json.loads(reply.read(_MAX_HEALTH_BYTES))
                if isinstance(answer, dict):
                    return answer
    return {}


def _ask(state: StateFolder) -> PlantStatus | None:
    if not state.running:
        return None
    with contextlib.suppress(TokenmillError):  # it may just have ended
        return ask(state, ControlRequest(op="status")).status
    return None


def _print(plant: PlantStatus) -> None:
    from rich.console import Console  # noqa: PLC0415  only for people
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    word = "stopping" if plant.stopping else "ready" if plant.ready else "starting"
    console.print(f"[bold]{plant.name}[/bold]  {plant.model}  {word}  {' '.join(plant.urls)}")
    table = Table(box=None, pad_edge=False)
    # A process is named stage-replica, so that the stage needs no column; 80 columns must do.
    titles = ["process", "role", "state", "pid", "uptime", "restarts", "load"]
    for title in titles:
        table.add_column(
            title, justify="right" if title in {"pid", "uptime", "restarts"} else "left", no_wrap=True
        )
    load = loads(health(plant.urls)) if plant.urls else {}
    for row in plant.processes:
        style = _STYLES.get(row.state, "cyan")
        uptime = "" if row.since is None else duration(plant.now - row.since)
        state = f"[{style}]{row.state}[/{style}]"
        busy = load.get(row.pid or 0, "") or plant.own_urls.get(row.name, "")
        table.add_row(row.name, row.role, state, str(row.pid or ""), uptime, str(row.restarts), busy)
    console.print(table)
    for row in plant.processes:
        if row.message:
            console.out(f"{row.name}: {row.message}")


def loads(answer: dict[str, Any]) -> dict[int, str]:
    """Read a front door's health answer: what each worker is busy with, by pid."""
    workers = answer.get("worker_list")
    found: dict[int, str] = {}
    for worker in workers if isinstance(workers, list) else []:
        with contextlib.suppress(TypeError, KeyError):
            busy = f"{worker['running']} run, {worker['waiting']} wait"
            if worker["kv_blocks_total"]:
                busy += f", KV {worker['kv_blocks_used'] / worker['kv_blocks_total']:.0%}"
            if worker.get("circuit", "closed") != "closed":
                busy += f", circuit {worker['circuit']}"
            found[worker["pid"]] = busy
    return found


def duration(seconds: float) -> str:
    """Write a time span for people, in its two largest units."""
    whole = max(0, int(seconds))
    units = ((whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s"))
    first = next((i for i, (count, _) in enumerate(units) if count), len(units) - 1)
    return "".join(f"{count}{unit}" for count, unit in units[first : first + 2])
