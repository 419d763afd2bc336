"""What the launch writes is what the engine reads."""

import json

import pytest

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.vllm.connector.settings import ConnectorSettings, read_settings, transfer_config
from tokenmill.serve.engines.vllm.launch import CONNECTOR_PATH
from tokenmill.serve.engines.vllm.plan import Ports, VllmOptions, plan_launch

PORTS = Ports(1, 2, 3, 4)


def test_what_is_written_is_read() -> None:
    settings = ConnectorSettings(
        transports=("tcp",), host="10.0.0.1", run_dir="/run/t", lease_s=7.5, checksums=True
    )
    written = json.loads(json.dumps(transfer_config(settings, "kv_producer")))
    assert written["kv_role"] == "kv_producer"
    assert read_settings(written["kv_connector_extra_config"]) == settings
    assert read_settings({}) == ConnectorSettings()


@pytest.mark.parametrize("extra", [{"lease": 3}, {"lease_s": 0}, {"lease_s": "long"}, {"transports": "shm"}])
def test_bad_settings_are_refused(extra: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="kv_connector_extra_config"):
        read_settings(extra)


def planned(role: Role = Role.PREFILL, **fields: object) -> tuple[dict[str, object], dict[str, str]]:
    """The transfer config and the environment of a launch."""
    options = VllmOptions(model="/m", model_name="m", role=role, **fields)  # type: ignore[arg-type]
    plan = plan_launch(options, PORTS)
    if "--kv-transfer-config" not in plan.command:
        return {}, plan.environment
    return json.loads(plan.command[plan.command.index("--kv-transfer-config") + 1]), plan.environment


@pytest.mark.parametrize(("role", "kv_role"), [(Role.PREFILL, "kv_producer"), (Role.DECODE, "kv_consumer")])
def test_a_stage_that_says_so_gets_our_connector(role: Role, kv_role: str) -> None:
    config, environment = planned(
        role,
        kv_connector="tokenmill",
        transports=("tcp",),
        lease_s=9.0,
        transfer_host="10.0.0.1",
        run_dir="/r",
    )
    assert config == {
        "kv_connector": "TokenmillConnector",
        "kv_connector_module_path": "tokenmill_connector",
        "kv_role": kv_role,
        "kv_load_failure_policy": "fail",
        "kv_connector_extra_config": {
            "transports": ["tcp"],
            "host": "10.0.0.1",
            "run_dir": "/r",
            "lease_s": 9.0,
            "checksums": False,
        },
    }
    assert environment["PYTHONPATH"] == str(CONNECTOR_PATH)
    assert [path.name for path in CONNECTOR_PATH.glob("*.py")] == ["tokenmill_connector.py"]


def test_the_users_path_stays() -> None:
    _, environment = planned(kv_connector="tokenmill", engine_env={"PYTHONPATH": "/mine", "A": "b"})
    assert environment["PYTHONPATH"] == f"{CONNECTOR_PATH}:/mine"
    assert environment["A"] == "b"


def test_nothing_of_it_where_it_is_not_asked_for() -> None:
    config, environment = planned()
    assert config == {"kv_connector": "NixlConnector", "kv_role": "kv_producer"}
    assert "PYTHONPATH" not in environment
    assert planned(Role.BOTH, kv_connector="tokenmill")[0] == {}
    assert "PYTHONPATH" not in planned(Role.BOTH, kv_connector="tokenmill")[1]


def test_another_connector_in_the_arguments_is_a_conflict() -> None:
    nixl = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_producer"})
    with pytest.raises(ConfigError, match=r"NixlConnector.*kv_connector: tokenmill.*remove one"):
        planned(kv_connector="tokenmill", engine_args={"kv_transfer_config": nixl})


def test_the_same_connector_in_the_arguments_wins() -> None:
    ours = {
        "kv_connector": "TokenmillConnector",
        "kv_connector_module_path": "tokenmill_connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
    }
    config, environment = planned(
        kv_connector="tokenmill", engine_args={"kv_transfer_config": json.dumps(ours)}
    )
    assert config == ours
    assert "PYTHONPATH" in environment
