"""Both stages of a pair need one KV connector, and only vLLM has a choice."""

from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.protocol.handoffs import Side, why_not
from tokenmill.spec.factory import Factory
from tokenmill.spec.load import parse_factory

from .worker_configs import worker_configs


def factory(prefill: str = "", decode: str = "", engine: str = "vllm") -> Factory:
    return parse_factory(
        f"""
apiVersion: tokenmill/v1
kind: Factory
metadata: {{name: f}}
model: {{name: m, path: m}}
stages:
  - {{name: p, role: prefill, engine: {engine}{prefill and f", kv_connector: {prefill}"}}}
  - {{name: d, role: decode, engine: {engine}{decode and f", kv_connector: {decode}"}}}
""",
        "f",
    )


@pytest.mark.parametrize("name", ["", "nixl", "tokenmill"])
def test_one_for_both(name: str) -> None:
    configs = worker_configs(factory(name, name))
    assert [config.kv_connector for config in configs] == [name or "nixl"] * 2


@pytest.mark.parametrize(("prefill", "decode"), [("tokenmill", ""), ("nixl", "tokenmill")])
def test_two_are_refused_with_the_fix(prefill: str, decode: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot hand its KV cache over.*give both the same kv_connector"):
        factory(prefill, decode)


def test_an_unknown_one_is_named() -> None:
    with pytest.raises(ConfigError, match=r'kv_connector.*"tokenmil" is not.*tokenmill'):
        factory("tokenmil", "tokenmill")


def test_other_engines_have_none() -> None:
    with pytest.raises(ConfigError, match=r'kv_connector.*engine "vllm", not "torch"'):
        factory("tokenmill", "tokenmill", engine="torch")


def side(**fields: object) -> Side:
    values = {"name": "stage s", "engine": "vllm", "version": "0.32.0", "block_tokens": 32, **fields}
    return Side(**values)


def test_workers_say_which_one_they_have() -> None:
    ours, theirs = side(transports=("vllm-tokenmill",)), side(transports=("vllm",))
    assert why_not(ours, ours) == ""
    assert "kv_connector" in why_not(ours, theirs)
    assert "block_tokens" in why_not(ours, side(transports=ours.transports, block_tokens=64))
    assert "version" in why_not(ours, side(transports=ours.transports, version="0.31.0"))
