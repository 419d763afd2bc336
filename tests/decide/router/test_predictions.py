from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.router.index import Owner
from tokenmill.decide.router.predictions import Predictions


def test_a_prediction_ends_with_its_time():
    predictions, owner = Predictions(100), Owner(3)
    predictions.add(owner, [1, 2], 10.0, 5.0)
    predictions.expire(14.9)
    assert predictions.masks == {1: 8, 2: 8}
    assert owner.claims == 1
    predictions.expire(15.0)
    assert (predictions.masks, predictions.names, owner.claims) == ({}, 0, 0)


def test_a_second_prediction_prolongs_the_first():
    predictions, owner, other = Predictions(100), Owner(0), Owner(1)
    predictions.add(owner, [1, 2], 10.0, 5.0)
    predictions.add(owner, [1], 12.0, 5.0)
    predictions.add(other, [1], 12.0, 5.0)
    predictions.expire(16.0)
    assert predictions.masks == {1: 3}
    predictions.expire(17.0)
    assert predictions.masks == {}


def test_times_to_live_may_differ():
    predictions, owner, other = Predictions(100), Owner(0), Owner(1)
    predictions.add(owner, [1], 10.0, 120.0)
    predictions.add(other, [1], 11.0, 5.0)
    predictions.expire(20.0)
    assert predictions.masks == {1: 1}


def test_too_many_names_end_the_oldest_predictions():
    predictions, owner = Predictions(10), Owner(0)
    for number in range(20):
        predictions.add(owner, [2 * number, 2 * number + 1], float(number), 50.0)
    assert predictions.names == 10
    assert set(predictions.masks) == set(range(30, 40))


def test_nothing_is_believed_for_no_time():
    predictions, owner = Predictions(10), Owner(0)
    predictions.add(owner, [1], 1.0, 0.0)
    predictions.add(owner, [], 1.0, 5.0)
    assert (predictions.masks, owner.claims) == ({}, 0)


def test_one_call_expires_a_bounded_number_and_the_next_goes_on():
    predictions, owner = Predictions(1000), Owner(0)
    for number in range(100):
        predictions.add(owner, [number], 0.0, 1.0)
    predictions.expire(9.0)
    assert 0 < len(predictions.masks) < 100
    for _ in range(20):
        predictions.expire(9.0)
    assert not predictions.masks


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.lists(st.integers(0, 9), min_size=1, unique=True),
            st.sampled_from([2.0, 7.0]),
            st.floats(0, 3),
        ),
        max_size=30,
    )
)
def test_a_bit_stands_exactly_while_some_prediction_holds(steps):
    predictions, owners = Predictions(10_000), [Owner(slot) for slot in range(4)]
    now, model = 0.0, []
    for slot, names, ttl_s, pause_s in steps:
        now += pause_s
        predictions.add(owners[slot], names, now, ttl_s)
        model.append((now + ttl_s, slot, names))
        for _ in range(len(steps)):
            predictions.expire(now)
        expected = {}
        for ends_at, who, these in model:
            for name in these if ends_at > now else ():
                expected[name] = expected.get(name, 0) | 1 << who
        assert predictions.masks == expected
        assert sum(owner.claims for owner in owners) == sum(ends_at > now for ends_at, _, _ in model)
