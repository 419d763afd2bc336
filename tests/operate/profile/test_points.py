"""Which work a sweep asks for."""

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.operate.profile.points import Limits, decode_points, prefill_points

LIMITS = st.builds(
    Limits,
    prefill_tokens=st.integers(16, 5000),
    sequences=st.integers(1, 100),
    context_tokens=st.integers(64, 5000),
    kv_tokens=st.integers(100, 50_000),
)


@given(LIMITS)
def test_no_point_goes_beyond_the_limits(limits: Limits) -> None:
    for point in (*prefill_points(limits), *decode_points(limits)):
        assert point.prompts <= limits.sequences
        assert point.tokens <= limits.kv_tokens
        assert point.prompt_tokens + point.output_tokens <= limits.context_tokens
        assert point.prompt_tokens >= 1
    for point in prefill_points(limits):
        assert point.output_tokens == 1
        assert point.prompts * point.prompt_tokens <= limits.prefill_tokens


def test_prefill_sizes_are_half_an_octave_apart() -> None:
    limits = Limits(prefill_tokens=1000, sequences=8, context_tokens=8192, kv_tokens=10**6)
    sizes = [point.prompt_tokens for point in prefill_points(limits) if point.prompts == 1]
    assert sizes == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1000]
    assert {point.prompts for point in prefill_points(limits)} == {1, 4}


def test_decode_batches_and_contexts() -> None:
    limits = Limits(prefill_tokens=1000, sequences=8, context_tokens=2048, kv_tokens=10**6)
    points = list(decode_points(limits))
    assert [point.prompts for point in points if point.prompt_tokens == 32] == [1, 2, 4, 8]
    assert {point.prompt_tokens for point in points} == {32, 128, 512}
