"""The credit that keeps a least share of prompts on the workers that decode."""

import random

import pytest

from tokenmill.decide.router.local_share import MOST, LocalShare


def run(least, differences):
    """Return the share of local choices over the later half, and the share kept."""
    share = LocalShare(least)
    local = []
    for difference_ms in differences:
        local.append(difference_ms <= share.credit_ms)
        share.chosen(local=local[-1], difference_ms=difference_ms)
    half = local[len(local) // 2 :]
    return sum(half) / len(half), share


def draws(mean, sd, count=4000, seed=1):
    chance = random.Random(seed)
    return [chance.gauss(mean, sd) for _ in range(count)]


@pytest.mark.parametrize("least", [0.1, 0.25, 0.5, 0.75])
def test_the_share_is_kept_where_local_ways_are_longer(least):
    found, share = run(least, draws(100, 40))
    assert found == pytest.approx(least, abs=0.03)
    assert share.credit_ms > 0


def test_no_credit_where_more_are_local_anyhow():
    found, share = run(0.25, draws(-50, 40))
    assert found > 0.8
    assert share.credit_ms < 40


def test_it_follows_when_things_change():
    found, _ = run(0.5, draws(20, 5) + draws(300, 50, 4000, seed=2))
    assert found == pytest.approx(0.5, abs=0.05)


def test_without_a_share_nothing_is_credited():
    share = LocalShare(0.0)
    assert not share.wanted
    for difference_ms in draws(100, 40, 100):
        share.chosen(local=False, difference_ms=difference_ms)
    assert share.credit_ms == 0


def test_what_cannot_be_had_is_not_saved_up_for():
    share = LocalShare(1.0)
    for _ in range(10_000):
        share.chosen(local=False, difference_ms=10.0)
    assert share.credit_ms <= MOST * 10.0
