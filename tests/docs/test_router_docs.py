"""The policy in docs/router.md works as it stands there, installed as a package is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.decide.router.routing_cases import D, P, Plant, card

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.router_policies import policy_maker
from tokenmill.spec.load import parse_factory

DOCS = Path(__file__).parents[2] / "docs" / "router.md"


def code(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "reserve-1.0.dist-info"
    info.mkdir()
    (tmp_path / "reserve.py").write_text(code("python"))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reserve\nVersion: 1.0\n")
    group, entry = code("toml").strip().splitlines()
    name = re.fullmatch(r'\[project\.entry-points\."(.*)"\]', group)
    assert name is not None
    (info / "entry_points.txt").write_text(f"[{name[1]}]\n{entry.replace(chr(34), '')}\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_the_example_is_short():
    assert len(code("python").splitlines()) < 30


@pytest.mark.usefixtures("installed")
def test_the_example_chooses_by_tenant_and_cache():
    plant = Plant(*(card(f"w{number}") for number in range(5)), policy=policy_maker("reserve"))
    assert plant.router.wants_kv
    prompt = list(range(200))
    plant.caches("w0", prompt)
    plant.caches("w3", prompt[:100])
    decision = plant.route(prompt)
    assert (decision.decode_worker, decision.cached_tokens) == ("w3", 100)
    assert decision.reasons == ("w3: 100 tokens cached",)
    assert plant.chosen(prompt, tenant="gold") == "w0"


@pytest.mark.usefixtures("installed")
def test_the_example_serves_both_sides():
    plant = Plant(card("p", P), card("d", D), prefill="remote", policy=policy_maker("reserve"))
    decision = plant.route(list(range(50)))
    assert (decision.decode_worker, decision.prefill_worker) == ("d", "p")


@pytest.mark.usefixtures("installed")
def test_the_factory_file_takes_its_name():
    factory = parse_factory(FACTORY.format("reserve"), "f.yaml")
    assert factory.router.policy == "reserve"


def test_what_is_not_installed_is_refused():
    with pytest.raises(ConfigError, match='"reserve" is not'):
        parse_factory(FACTORY.format("reserve"), "f.yaml")
    with pytest.raises(ConfigError, match="'reserve' is unknown"):
        policy_maker("reserve")


FACTORY = """
apiVersion: tokenmill/v1
kind: Factory
metadata: {{name: f}}
router: {{policy: {}}}
stages: [{{name: w}}]
"""
