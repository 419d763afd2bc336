"""Loads in one line: what they mean, and what is said of those that cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ConfigError
from tokenmill.simulate.synthetic import Load
from tokenmill.simulate.synthetic_words import KINDS, is_load, parse_load


def test_a_line_is_a_load() -> None:
    words = "poisson:rate=5, prompt=3000,output=150,seconds=600,"
    assert parse_load(words) == Load(kind="poisson", rate=5, prompt=3000, output=150, seconds=600)
    assert parse_load("chats:requests=10,turns=2.5").turns == 2.5
    assert parse_load("gamma:requests=1e3,cv=2").requests == 1000


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_are_known(kind: str) -> None:
    assert is_load(f"{kind}:requests=1")
    assert parse_load(f"{kind}:requests=1").kind == kind


@pytest.mark.parametrize("words", ["trace.jsonl", "./poisson", "C:\\poisson", "poissons:rate=1"])
def test_other_words_are_files(words: str) -> None:
    assert not is_load(words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("poison:seconds=1", 'trace: "poison" is not even, poisson, .* Did you mean "poisson"'),
        ("poisson:rat=1", 'poisson: rat: unknown. Did you mean "rate"'),
        ("poisson:zzz=1", "poisson: zzz: unknown. Known: rate, "),
        ("poisson:cv=1", "poisson: cv: only gamma has it"),
        ("poisson:rate=0,seconds=1", "poisson: rate: 0: expected .* > 0"),
        ("poisson:rate=fast", 'poisson: rate: "fast" is no number'),
        ("poisson:rate=inf", 'poisson: rate: "inf" is no number'),
        ("poisson:rate=1,rate=2", "poisson: rate: is here twice"),
        ("poisson:rate", "poisson: rate: give name=value, for example poisson:"),
        ("poisson:prompt=1.5,seconds=1", "poisson: prompt: 1.5"),
        ("poisson", "poisson: seconds: say where it ends"),
        ("poisson:rate=5", "poisson: seconds: say where it ends"),
        ("poisson:kind=1,seconds=1", "poisson: kind: unknown"),
        ("diurnal:swing=2,seconds=1", "diurnal: swing: 2"),
    ],
)
def test_a_bad_line_names_field_and_fix(words: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        parse_load(words)
    assert caught.value.param == "trace"


@given(st.sampled_from(KINDS), st.text(max_size=60))
def test_any_words_are_a_load_or_a_config_error(kind: str, rest: str) -> None:
    try:
        load = parse_load(f"{kind}:{rest}")
    except ConfigError as error:
        assert error.message.startswith(f"trace: {kind}: ")  # noqa: PT017 -- either way is right
    else:
        assert load.kind == kind
