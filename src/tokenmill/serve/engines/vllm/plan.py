"""What launching a vLLM server means: its command, environment, address and event sources.

Plain functions, so that what ``tokenmill render`` shows is what a worker runs. It must not start anything.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from tokenmill.serve.engines.kv_events.rank_events import EventSource
from tokenmill.serve.engines.remote.options import LOOPBACK, Parallelism, ServerOptions
from tokenmill.serve.engines.remote.program import program
from tokenmill.serve.engines.vllm.connector.settings import ConnectorSettings
from tokenmill.serve.engines.vllm.launch import (
    Places,
    connector_environment,
    serve_arguments,
    serve_environment,
)


class VllmOptions(ServerOptions, frozen=True, kw_only=True):
    """What a worker is told of its engine.

    ``transfer_host``: where the workers that take or give the KV cache reach this one's. ``transports``,
    ``lease_s``: of our own connector.
    """

    kv_connector: str = "nixl"
    transports: tuple[str, ...] = ("shm", "tcp")
    lease_s: float = 30.0
    transfer_host: str = LOOPBACK


class Ports(msgspec.Struct, frozen=True):
    """Where a server listens; each of them with as many free ones behind it as ``ranks_of`` says."""

    serve: int
    events: int
    replay: int
    side_channel: int


class LaunchPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A server to start. ``environment``: beside the one that it inherits. ``sources``: of its KV events."""

    command: list[str]
    environment: dict[str, str]
    url: str
    sources: tuple[EventSource, ...]


def ranks_of(parallel: Parallelism) -> int:
    """How many neighbouring ports each of a server's channels may take: one a rank."""
    return max(1, parallel.dp * parallel.tp)


def plan_launch(options: VllmOptions, ports: Ports, *, host: str = LOOPBACK, here: bool = True) -> LaunchPlan:
    """Return what starts the server. ``host``: where it listens; ``here``: on this machine.

    Raises ConfigError for arguments that cannot be.
    """
    places = Places(
        host=host,
        port=ports.serve,
        events=_endpoint(options, "events", ports.events),
        replay=_endpoint(options, "replay", ports.replay),
        side_channel_host=options.transfer_host,
        side_channel_port=ports.side_channel,
        connector=_connector(options),
    )
    words = program(
        options, "vllm.entrypoints.cli.main", here=here, subcommand=("serve",), bare=("vllm", "serve")
    )
    return LaunchPlan(
        command=[*words, *serve_arguments(options, places)],
        environment={
            **serve_environment(places),
            **options.engine_env,
            **connector_environment(options, places),
        },
        url=f"http://{host}:{ports.serve}",
        sources=_sources(options, places, ports),
    )


def _connector(options: VllmOptions) -> ConnectorSettings | None:
    """What our own connector is told; None: vLLM's is used."""
    if options.kv_connector != "tokenmill":
        return None
    return ConnectorSettings(
        transports=options.transports,
        host=options.transfer_host,
        run_dir=options.run_dir,
        lease_s=options.lease_s,
    )


def _endpoint(options: VllmOptions, name: str, port: int) -> str:
    """A Unix socket in the worker's own folder where one will do: nobody else can read or speak there."""
    if options.parallel.dp == 1 and options.run_dir:
        return f"ipc://{Path(options.run_dir) / f'vllm-{name}-{port}.sock'}"
    return f"tcp://*:{port}"


def _sources(options: VllmOptions, places: Places, ports: Ports) -> tuple[EventSource, ...]:
    if not options.prefix_cache:
        return ()
    if places.events.startswith("ipc:"):
        return (EventSource(places.events, places.replay),)
    base = f"tcp://{places.host}"
    return tuple(
        EventSource(f"{base}:{ports.events + rank}", f"{base}:{ports.replay + rank}")
        for rank in range(options.parallel.dp)
    )
