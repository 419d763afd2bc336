"""From a worker's configuration to its engine's command."""

from __future__ import annotations

from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.launches import EngineLaunch, engine_launch, vllm_options
from tokenmill.spec.process import WorkerConfig


def launch(environment: dict[str, str] | None = None, port: int = 20000, **fields: object) -> EngineLaunch:
    values: dict[str, object] = {"engine": "vllm", "model": "org/name", **fields}
    found = engine_launch(WorkerConfig(**values), port, environment or {})  # type: ignore[arg-type]
    assert found is not None
    return found


def option(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def test_engines_in_the_worker_launch_nothing():
    assert engine_launch(WorkerConfig(engine="sim"), 20000, {}) is None


def test_a_launched_one_gets_ports_gpus_and_a_place_to_be_fetched_from():
    found = launch({"CUDA_VISIBLE_DEVICES": "4,5,6,7"}, tp=2, gpus=[2, 3], transfer_host="10.0.0.1")
    assert found.command[:3] == ["vllm", "serve", "org/name"]
    assert option(found.command, "--port") == "20000"
    assert option(found.command, "--host") == "127.0.0.1"
    assert option(found.command, "--served-model-name") == "org/name"
    assert found.environment["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert found.environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.1"
    assert found.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "20006"
    assert found.ports == 8


def test_what_the_user_sets_in_the_environment_wins():
    found = launch(gpus=[0], engine_env={"CUDA_VISIBLE_DEVICES": "3", "X": "y"})
    assert (found.environment["CUDA_VISIBLE_DEVICES"], found.environment["X"]) == ("3", "y")


def test_one_to_attach_to_listens_where_it_is_looked_for():
    found = launch(
        {"CUDA_VISIBLE_DEVICES": "7"},
        attach="http://10.0.0.2:8100",
        role=Role.DECODE,
        gpus=[0, 1],
        dp=2,
        engine_python="/there/python",
        run_dir="/run",
    )
    assert found.command[0] == "/there/python"
    assert (option(found.command, "--host"), option(found.command, "--port")) == ("10.0.0.2", "8100")
    assert "tcp://*:8101" in option(found.command, "--kv-events-config")
    assert found.environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "10.0.0.2"
    assert found.environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] == "8105"
    assert found.environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert found.ports == 0


def test_a_server_whose_model_we_do_not_name_is_asked_for_it():
    nameless = vllm_options(WorkerConfig(engine="vllm", attach="http://h:1"), "", {})
    assert nameless.model_name == ""
    named = vllm_options(WorkerConfig(engine="vllm", model="org/name"), "/cache/snapshots/abc", {})
    assert (named.model, named.model_name) == ("/cache/snapshots/abc", "org/name")
