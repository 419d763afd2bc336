"""Which requests are served: files, made-up loads, cuts, and classes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tokenmill.errors import ConfigError
from tokenmill.operate.simulate.loads import open_trace
from tokenmill.spec.scenario import RequestClass, Scenario, ScenarioMetadata

LOAD = "even:rate=10,requests=100,prompt=10,output=2"


def scenario(**changes: object) -> Scenario:
    return Scenario(metadata=ScenarioMetadata(name="s"), **changes)


def opened(words: str = "", seed: int = 0, folder: Path = Path(), **changes: object):
    return open_trace(words, scenario(**changes), folder=folder, seed=seed)


def test_the_command_line_goes_before_the_scenario() -> None:
    assert len(opened(LOAD, trace="even:rate=1,requests=5").requests) == 100
    assert len(opened(trace="even:rate=1,requests=5").requests) == 5


def test_cut_first_then_denser_then_limited() -> None:
    trace = opened(LOAD, start_at_s=2.0, end_at_s=8.0, speedup=2.0, limit=5)
    assert [r.at_s for r in trace.requests] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert len(opened(LOAD, start_at_s=2.0).requests) == 80


def test_a_cut_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="there are no requests in it"):
        opened(LOAD, start_at_s=100.0)


def test_a_file_whose_name_looks_like_a_load_is_a_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a:b=c").write_text("time,input_tokens,output_tokens\n0,1,1\n")
    assert len(opened("a:b=c").requests) == 1


def test_classes_are_drawn_by_their_shares_and_the_seed() -> None:
    classes = [
        RequestClass(name="gold", share=0.3, priority=5, tenant="t"),
        RequestClass(name="free", share=0.2),
    ]
    load = "even:rate=10,requests=4000,prompt=10,output=2"
    found = opened(load, classes=classes).requests
    counts = Counter(r.klass for r in found)
    assert counts["gold"] == pytest.approx(1200, rel=0.1)
    assert counts["free"] == pytest.approx(800, rel=0.1)
    assert counts[""] == 4000 - counts["gold"] - counts["free"]
    assert {(r.priority, r.tenant) for r in found if r.klass == "gold"} == {(5, "t")}
    assert {(r.priority, r.tenant) for r in found if r.klass != "gold"} == {(0, "")}
    assert opened(load, classes=classes).requests == found
    assert opened(load, seed=1, classes=classes).requests != found


def test_what_the_trace_says_itself_stays(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "time,input_tokens,output_tokens,class,tenant,priority\n0,1,1,gold,a,9\n1,1,1,gold,,\n2,1,1,other,,\n"
    )
    classes = [RequestClass(name="gold", priority=5, tenant="t"), RequestClass(name="free", share=1.0)]
    found = opened(trace="t.csv", folder=tmp_path, classes=classes).requests
    assert [(r.klass, r.tenant, r.priority) for r in found] == [
        ("gold", "a", 9),
        ("gold", "t", 5),
        ("other", "", 0),
    ]
