from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.operate.deploy.quick import ServeOptions, quick_factory
from tokenmill.protocol.ids import Role
from tokenmill.spec.checks import ENGINES
from tokenmill.spec.derive import to_frontend_config
from tokenmill.spec.problems import one_of


def counts(factory):
    return {stage.role: stage.replicas for stage in factory.stages}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {Role.PREFILL: 1, Role.DECODE: 1}),
        ({"prefill": 2, "decode": 3}, {Role.PREFILL: 2, Role.DECODE: 3}),
        ({"both": 2}, {Role.BOTH: 2}),
        ({"both": 1, "prefill": 1}, {Role.PREFILL: 1, Role.BOTH: 1}),
    ],
)
def test_workers_by_role(options, expected):
    assert counts(quick_factory(ServeOptions(**options))) == expected


def test_flags_reach_the_factory():
    factory = quick_factory(
        ServeOptions(
            model="m", engine="sim", port=1234, host="0.0.0.0", engine_args={"a": "1"}, kv_memory_mb=7,
            log_level="debug", name="mine",
        )
    )  # fmt: skip
    assert factory.metadata.name == "mine"
    assert factory.model.path == "m"
    assert (factory.frontend.port, factory.frontend.host) == (1234, "0.0.0.0")
    assert all((s.engine, s.engine_args, s.kv_memory_mb) == ("sim", {"a": "1"}, 7) for s in factory.stages)
    assert factory.log.level == "debug"


def test_the_name_follows_the_port_so_that_two_can_run():
    assert quick_factory(ServeOptions(port=8123)).metadata.name == "serve-8123"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill": 0, "decode": 0}, "no workers: give --prefill and --decode, or --both, at least 1"),
        ({"decode": 0}, "--prefill and --decode: a prefill stage needs a decode stage beside it"),
        ({"port": 70000}, "--port: must be 65535 or less, not 70000"),
        ({"engine": "openai"}, '--attach: is missing; engine "openai" needs the address of a server'),
        ({"router_policy": "vk"}, '--router-policy: "vk" is not kv, least-loaded, '),
        ({"engine": "tosh"}, f'--engine: "tosh" is not {one_of(ENGINES)}. Did you mean "torch"'),
        ({"block_tokens": -1}, "--block-tokens: must be 0 or more, not -1"),
        ({"log_level": "loud"}, '--log-level: "loud" is not debug, error, info or warning.'),
        ({"name": "My Mill"}, '--name: "My Mill" must be'),
        ({"both": -1}, "--both: must be 0 or more, not -1"),
    ],
)
def test_what_is_wrong_is_said_in_terms_of_flags(options, message):
    with pytest.raises(ConfigError) as caught:
        quick_factory(ServeOptions(**options))
    assert message in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_front_doors_can_be_several():
    assert quick_factory(ServeOptions(frontends=3)).frontend.replicas == 3
    with pytest.raises(ConfigError, match=r"^--frontends: "):
        quick_factory(ServeOptions(frontends=-1))


def test_certificates_and_origins_reach_the_front_door():
    options = ServeOptions(tls_cert="c", tls_key="k", tls_client_ca="a", cors_origins=["https://x.example"])
    front = quick_factory(options).frontend
    assert (front.tls_cert, front.tls_key, front.tls_client_ca) == ("c", "k", "a")
    assert front.cors_origins == ["https://x.example"]


def test_the_demonstration_shows_the_handoff(tmp_path):
    assert quick_factory(ServeOptions()).router.prefill == "remote"
    assert quick_factory(ServeOptions(model=str(tmp_path))).router.prefill == "auto"
    assert quick_factory(ServeOptions(router_prefill="auto")).router.prefill == "auto"


def test_a_server_of_text_gets_one_worker_and_all_its_models():
    factory = quick_factory(
        ServeOptions(engine="openai", attach="http://h:11434", attach_key="env:KEY", max_sequences=4)
    )
    (stage,) = factory.stages
    assert (stage.name, stage.role, stage.replicas) == ("both", Role.BOTH, 1)
    assert (stage.attach, stage.attach_key, stage.max_sequences) == ("http://h:11434", "env:KEY", 4)
    assert to_frontend_config(factory).text_models == ["*"]
