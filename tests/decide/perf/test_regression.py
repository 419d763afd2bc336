from __future__ import annotations

import math

import pytest

from tokenmill.decide.perf.regression import LEAST_GAIN, SETTLED, SURPRISES, Prior, Regression


def line(*, noise=0.01):
    prior = Prior((1.0, 1.0), (1.0, 1.0), (0.0, 0.0), ((1.0, 0.0), (0.0, 1.0)))
    return Regression(prior, absolute_noise=noise)


def test_the_first_sample_rescales_all_weights():
    model = line()
    model.learn(((0, 1.0), (1, 3.0)), 40.0)
    assert model.weights == pytest.approx([10.0, 10.0])
    assert model.samples == 1


def test_exact_samples_give_the_exact_line():
    model = line()
    for _ in range(50):
        for x in (1.0, 2.0, 9.0):
            model.learn(((0, 1.0), (1, x)), 5.0 + 0.5 * x)
    assert model.weights == pytest.approx([5.0, 0.5], rel=0.02)
    assert model.noise == pytest.approx(0.02)


def test_what_was_not_asked_stays_unsure():
    model = line()
    for _ in range(100):
        model.learn(((0, 1.0),), 5.0)
    assert model.sd(((0, 1.0),)) < 0.2
    assert model.sd(((1, 1.0),)) > 1.0


@pytest.mark.parametrize("measured", [0.0, -1.0, math.inf, math.nan])
def test_what_is_no_time_is_left_out(measured):
    model = line()
    model.learn(((0, 1.0),), measured)
    assert model.samples == 0
    assert model.weights == [1.0, 1.0]


def test_a_few_wild_samples_move_little_and_a_row_of_them_all():
    model = line()
    features = ((0, 1.0),)
    for number in range(2 * SETTLED):
        model.learn(features, 5.0 + 0.2 * (-1) ** number)
    for _ in range(SURPRISES - 1):
        model.learn(features, 500.0)
    assert model.predict(features) < 8.0
    model.learn(features, 500.0)
    assert model.predict(features) == pytest.approx(500.0)


def test_a_slow_drift_is_followed():
    model = line()
    features = ((0, 1.0),)
    measured = 5.0
    for number in range(3000):
        measured *= 1.0005
        model.learn(features, measured * (1.0 + 0.05 * (-1) ** number))
    assert model.predict(features) == pytest.approx(measured, rel=0.1)
    assert 0 < LEAST_GAIN < 0.1


def test_weights_stay_at_zero_or_above():
    model = line()
    for _ in range(100):
        model.learn(((0, 1.0), (1, 1.0)), 1.0)
        model.learn(((0, 1.0), (1, 10.0)), 0.5)
    assert min(model.weights) >= 0.0
