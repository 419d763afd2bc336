from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.router.masks import mask_of, slots_of


@given(st.sets(st.integers(0, 300)))
def test_sets_come_back(slots):
    mask = mask_of(sorted(slots))
    assert mask == sum(1 << slot for slot in slots)
    assert sorted(slots_of(mask)) == sorted(slots)
