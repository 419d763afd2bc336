"""What docs/simulate.md shows can be used as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tokenmill.simulate.synthetic_words import KINDS, parse_load
from tokenmill.spec.load_scenario import parse_scenario

TEXT = (Path(__file__).parents[2] / "docs" / "simulate.md").read_text()


def test_the_scenario_is_one() -> None:
    found = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    scenario = parse_scenario(
        found[1], "docs", stages={"prefill": 2, "decode": 2}, is_known=lambda _: True, known=[]
    )
    assert len(scenario.classes) == 2
    assert scenario.events.failures[0].back_after_s == 4


@pytest.mark.parametrize("words", sorted(set(re.findall(rf"(?:{'|'.join(KINDS)}):[a-z]+=[\w=.,]+", TEXT))))
def test_loads_are_loads(words: str) -> None:
    assert parse_load(words).rate > 0


def test_all_kinds_of_load_are_there() -> None:
    assert [f"| `{kind}:` |" in TEXT for kind in KINDS] == [True] * len(KINDS)
