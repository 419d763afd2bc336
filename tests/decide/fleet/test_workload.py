import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.fleet.workload import MOST_SHAPES, Shape, from_requests, steady
from tokenmill.errors import ConfigError

requests = st.lists(
    st.tuples(st.integers(1, 20_000), st.floats(0, 0.99), st.integers(1, 2_000)), min_size=1, max_size=200
).map(lambda rows: [(prompt, int(prompt * share), output) for prompt, share, output in rows])


@given(requests)
def test_a_summed_up_trace_has_the_same_tokens(rows):
    load = from_requests(rows)
    assert len(load.shapes) <= MOST_SHAPES
    assert sum(shape.share for shape in load.shapes) == pytest.approx(1)
    assert load.prompt_tokens == pytest.approx(sum(row[0] for row in rows) / len(rows))
    assert load.output_tokens == pytest.approx(sum(row[2] for row in rows) / len(rows))
    assert load.new_tokens == pytest.approx(sum(row[0] - row[1] for row in rows) / len(rows))


def test_the_long_end_of_a_trace_is_kept_apart():
    rows = [(100, 0, 10)] * 980 + [(10_000, 0, 10)] * 20
    load = from_requests(rows)
    longest = load.shapes[-1]
    assert longest.prompt_tokens > 5_000
    assert longest.share < 0.05


def test_the_context_seen_in_a_step_is_of_those_that_are_there():
    load = steady(1000, 201)
    assert load.decode_context == pytest.approx(1100)
    chance = random.Random(3)
    shapes = [Shape(0.5, 500, 0, 101), Shape(0.5, 4000, 0, 401)]
    load = from_requests([(s.prompt_tokens, s.cached_tokens, s.output_tokens) for s in shapes])
    seen = []
    for _ in range(40_000):
        shape = chance.choices(shapes, weights=[s.decode_steps for s in shapes])[0]
        seen.append(shape.prompt_tokens + chance.uniform(0, shape.decode_steps))
    mean = sum(seen) / len(seen)
    sd = (sum((each - mean) ** 2 for each in seen) / len(seen)) ** 0.5
    assert load.decode_context == pytest.approx(mean, rel=0.02)
    assert load.decode_context_sd == pytest.approx(sd, rel=0.02)


def test_a_whole_prompt_is_never_cached():
    assert Shape(1.0, 100, 100, 10).new_tokens == 1


@pytest.mark.parametrize(
    ("given", "param"),
    [((0, 10), "isl"), ((10, 0), "isl"), ((10, 10, 10), "cached"), ((10, 10, -1), "cached")],
)
def test_lengths_that_cannot_be_are_refused(given, param):
    with pytest.raises(ConfigError) as error:
        steady(*given)
    assert error.value.param == param


def test_an_empty_trace_is_refused():
    with pytest.raises(ConfigError, match="no requests"):
        from_requests([])
