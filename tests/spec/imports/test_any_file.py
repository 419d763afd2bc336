"""Damaged files are imported or refused with lines; nothing else happens to whoever imports them."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.spec.imports.importing import import_factory
from tokenmill.spec.load import dump_factory
from tokenmill.spec.problems import FactoryError, Place

CASES = sorted((Path(__file__).parent / "cases").glob("*.yaml"))
FILES = [path.read_text() for path in CASES if not path.stem.endswith(".factory")]

DAMAGES = {
    "gone": lambda _: "",
    "other kind": lambda line: line.partition(":")[0] + ": [1, {a: b}]",
    "a text": lambda line: line.partition(":")[0] + ": x",
    "nothing": lambda line: line.partition(":")[0] + ":",
    "deeper": lambda line: "  " + line,
    "quote": lambda line: line + "'",
    "substitution": lambda line: line + " $(",
}


@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.integers(0, 200), st.sampled_from(sorted(DAMAGES))), min_size=1, max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_damaged_files(text, damages):
    lines = text.splitlines()
    for number, damage in damages:
        lines[number % len(lines)] = DAMAGES[damage](lines[number % len(lines)])
    places: list[Place] = []
    try:
        imported = import_factory("\n".join(lines), "f")
    except FactoryError as error:
        places = [problem.place for problem in error.problems]
    else:
        assert dump_factory(imported.factory)
        places = [loss.place for loss in imported.losses]
    assert all(0 < place.line <= len(lines) + 1 for place in places)
