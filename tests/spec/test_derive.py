from __future__ import annotations

from dataclasses import fields

import msgspec
import pytest

from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.frontend.router_settings import router_settings
from tokenmill.spec.derive import FRONTEND_KNOBS, STAGE_KNOBS, scaled, to_frontend_config
from tokenmill.spec.docs import field_docs
from tokenmill.spec.factory import Factory
from tokenmill.spec.front import Frontend
from tokenmill.spec.load import parse_factory
from tokenmill.spec.process import FrontendConfig, WorkerConfig
from tokenmill.spec.schema import factory_schema
from tokenmill.spec.stage import Stage

from .worker_configs import worker_configs

FACTORY = parse_factory(
    """
    metadata: {name: a}
    model: {name: m, path: /models/m}
    frontend: {port: 9000, host: 0.0.0.0, max_body_bytes: 5}
    router: {policy: least-loaded}
    migration: {max_attempts: 2, stall_timeout_s: 9}
    stages:
      - {name: p, role: prefill, replicas: 2, dtype: float32, engine_args: {x: 1}, transports: [tcp]}
      - {name: d, role: decode, replicas: 1, max_sequences: 3}
    log: {level: debug, format: json}
    """,
    "f",
)


def test_workers_are_told_what_their_stage_declares():
    first, second, third = worker_configs(FACTORY)
    assert first == WorkerConfig(
        model="/models/m", model_name="m", role=Role.PREFILL, stage="p", replica=0, dtype="float32",
        engine_args={"x": "1"}, transports=["tcp"], log_level="debug", log_format="json",
    )  # fmt: skip
    assert (second.stage, second.replica) == ("p", 1)
    assert (third.stage, third.role, third.max_sequences) == ("d", Role.DECODE, 3)


def test_front_doors_are_told_what_is_declared():
    assert to_frontend_config(FACTORY) == FrontendConfig(
        model="/models/m", model_name="m", host="0.0.0.0", port=9000, router_policy="least-loaded",
        max_body_bytes=5, log_level="debug", log_format="json",
        migration_max_attempts=2, migration_stall_timeout_s=9,
    )  # fmt: skip
    free = msgspec.structs.replace(FACTORY, frontend=Frontend(port=0))
    assert to_frontend_config(free).port == 0


@pytest.mark.parametrize(
    ("part", "config", "knobs"),
    [(Stage, WorkerConfig, STAGE_KNOBS), (Frontend, FrontendConfig, FRONTEND_KNOBS)],
)
def test_the_file_and_the_processes_agree_on_defaults(part, config, knobs):
    default = part(name="x") if part is Stage else part()
    process = config()
    for knob in knobs:
        assert getattr(default, knob) == getattr(process, knob), knob


def test_every_knob_of_a_worker_can_be_set_in_the_file_or_belongs_to_the_plant():
    plants_own = {
        "registry", "run_dir", "parent_fd", "ready_fd", "log_level", "log_format", "model", "model_name",
        "stage", "replica", "listen", "registry_ttl_s", "gpus", "tp", "pp", "dp", "ep",
        "price_input", "price_cached", "price_output",
    }  # fmt: skip
    assert {item.name for item in fields(WorkerConfig)} == plants_own | set(STAGE_KNOBS)


def test_scaling_changes_only_the_named_stages():
    more = scaled(FACTORY, {"d": 4})
    assert [stage.replicas for stage in more.stages] == [2, 4]
    assert [stage.replicas for stage in FACTORY.stages] == [2, 1]
    assert scaled(FACTORY, {"frontend": 3}).frontend.replicas == 3
    assert more.frontend == FACTORY.frontend
    with pytest.raises(ConfigError, match=r'a has no stage "x"\. It has p or d\.'):
        scaled(FACTORY, {"x": 1})
    with pytest.raises(ConfigError, match="d=-1: replicas must be 0 or more"):
        scaled(FACTORY, {"d": -1})


@pytest.mark.parametrize("kind", [Factory, Stage, Frontend, WorkerConfig, FrontendConfig])
def test_every_field_says_what_it_is(kind):
    names = kind.__struct_fields__ if kind in (Factory, Stage, Frontend) else [f.name for f in fields(kind)]
    docs = field_docs(kind)
    assert set(names) <= set(docs)
    assert all("\n" not in text for text in docs.values())


def test_the_schema_describes_every_field_and_takes_numbers_as_engine_settings():
    schema = factory_schema()
    stage = schema["$defs"]["Stage"]
    assert set(stage["properties"]) == set(Stage.__struct_fields__)
    assert all(item["description"] for item in stage["properties"].values())
    assert stage["additionalProperties"] is False
    assert "number" in stage["properties"]["engine_args"]["additionalProperties"]["type"]
    assert schema["$defs"]["Factory"]["required"] == ["metadata", "stages"]


def test_a_front_door_is_told_how_to_admit():
    factory = parse_factory(
        """
        metadata: {name: a}
        admission: {max_queued: 7, tenant_weights: {a: 2}, tenant_header: x-customer}
        stages: [{name: w}]
        """,
        "f",
    )
    config = to_frontend_config(factory)
    assert config.admission_max_queued == 7
    assert config.admission_tenant_weights == {"a": 2.0}
    assert config.admission_tenant_header == "x-customer"
    assert config.admission_max_wait_s == FrontendConfig().admission_max_wait_s


def test_a_front_door_is_told_what_the_router_goes_by():
    text = "metadata: {name: a}\nslo: {itl_ms: 33}\nrouter: {local_share: 0.25}\nstages: [{name: w}]"
    config = to_frontend_config(parse_factory(text, "f"))
    assert (config.slo_itl_ms, config.router_local_share) == (33.0, 0.25)
    settings = router_settings(config)
    assert (settings.itl_ms, settings.local_share) == (33.0, 0.25)
