from __future__ import annotations

import random

import pytest

from tokenmill.decide.perf.transfer_time import FIXED_MS, TOKEN_MS, OnlineTransferTime
from tokenmill.protocol.metrics import StepMetrics


def after(handoffs, tokens, spent_ms):
    return StepMetrics(handoffs_in_total=handoffs, transfer_tokens_total=tokens, transfer_ms_total=spent_ms)


def test_a_guess_until_something_was_fetched():
    times = OnlineTransferTime()
    assert times.transfer_ms(1000) == pytest.approx(FIXED_MS + 1000 * TOKEN_MS)
    assert not times.observe(after(0, 0, 0.0))
    assert times.samples == 0


@pytest.mark.parametrize(("fixed_ms", "token_ms"), [(0.4, 0.0005), (20.0, 0.2)])
def test_fixed_part_and_speed_are_told_apart(fixed_ms, token_ms):
    random_ = random.Random(1)
    times = OnlineTransferTime()
    handoffs = tokens = 0
    spent_ms = 0.0
    for _ in range(400):
        many = random_.randint(1, 3)
        moved = sum(random_.choice([50, 500, 5000]) for _ in range(many))
        handoffs, tokens = handoffs + many, tokens + moved
        spent_ms += (fixed_ms * many + token_ms * moved) * random_.gauss(1, 0.05)
        assert times.observe(after(handoffs, tokens, spent_ms))
    assert times.transfer_ms(0) == pytest.approx(fixed_ms, rel=0.3, abs=0.2)
    assert times.transfer_ms(5000) == pytest.approx(fixed_ms + 5000 * token_ms, rel=0.1)


def test_totals_that_go_back_teach_nothing():
    times = OnlineTransferTime()
    assert times.observe(after(10, 1000, 20.0))
    assert not times.observe(after(2, 100, 2.0))
    assert times.observe(after(3, 200, 4.0))


def test_short_caches_that_took_long_tell_little_of_long_ones():
    times = OnlineTransferTime()
    for number in range(1, 8):
        times.observe(after(number, 20 * number, 10.0 * number))
    assert times.transfer_ms(20) == pytest.approx(10.0, rel=0.2)
    assert times.transfer_ms(2000) < 10.0 + 4 * 2000 * TOKEN_MS
