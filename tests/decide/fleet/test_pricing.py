import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.decide.fleet.test_stages import REPLICA

from tokenmill.decide.fleet.pricing import StageCost, cached_share, prompts_share, token_prices
from tokenmill.decide.fleet.workload import steady

costs = st.lists(st.builds(StageCost, st.floats(0, 1000), st.floats(0, 1), st.floats(0, 1)), max_size=5)


@given(costs, st.sampled_from([0, 500]), st.floats(0.1, 100))
def test_tokens_times_prices_are_the_price_of_the_plant(stages, cached, rate):
    load = steady(1000, 100, cached)
    prices = token_prices(stages, load, rate)
    income = load.new_tokens * prices.input + load.output_tokens * prices.output
    income += load.cached_tokens * (prices.cached or 0.0)
    assert income * rate * 3600 / 1e6 == pytest.approx(sum(stage.dollars_per_hour for stage in stages))


def test_cached_tokens_bear_only_what_they_lengthen():
    assert cached_share(REPLICA, steady(1000, 100), 2048) == pytest.approx(0, abs=1e-3)
    little, much = (cached_share(REPLICA, steady(20_000, 100, cached), 2048) for cached in (1_000, 18_000))
    assert 0 < little < much < 0.5


def test_prompts_bear_more_where_they_are_long_and_nothing_where_they_are_computed_elsewhere():
    short, long = (prompts_share(REPLICA, steady(prompt, 150), 1.0, 64) for prompt in (100, 5000))
    assert 0 < short < long < 1
    assert prompts_share(REPLICA, steady(5000, 150), 0.0, 64) == 0
    assert prompts_share(REPLICA, steady(5000, 150), 0.5, 64) < long
