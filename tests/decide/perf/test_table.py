"""Tables: exact at their knots, rising in all they rise in, and refusing what is no table."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.step_time import (
    LinearStepTime,
    decode_batch_ms,
    prefill_batch_ms,
    prompts_work,
)
from tokenmill.decide.perf.table import StepTable, TableStepTime

TRUE = LinearStepTime()
TOKENS = (1, 64, 128, 185, 256, 1024, 8192)
SEQUENCES = (1, 8, 64, 256)
CONTEXTS = (1, 1000, 100_000)


def table_of(true: LinearStepTime = TRUE) -> StepTable:
    return StepTable(
        tokens=TOKENS,
        sequences=SEQUENCES,
        contexts=CONTEXTS,
        dense_ms=tuple(true.mixed_ms(n, 0, 0, 0) for n in TOKENS),
        decode_dense_ms=tuple(true.mixed_ms(0, 0, n, 0) for n in SEQUENCES),
        prefill_attention_ms=tuple(tuple(n * c * true.prefill_context_ms for c in CONTEXTS) for n in TOKENS),
        decode_attention_ms=tuple(tuple(n * c * true.decode_context_ms for c in CONTEXTS) for n in SEQUENCES),
        kv_bytes_per_token=131072,
        kv_capacity_tokens=400_000,
    )


TIMES = TableStepTime(table_of())


@given(st.floats(1, 20_000), st.floats(1, 50_000))
def test_attention_is_exact_between_knots_and_beyond(tokens: float, context: float) -> None:
    only = TIMES.prefill_ms(tokens, tokens * context) - TIMES.prefill_ms(tokens, tokens)
    assert only == pytest.approx(tokens * (context - 1) * TRUE.prefill_context_ms, rel=1e-6, abs=1e-6)


def test_a_table_says_what_it_was_made_from() -> None:
    prompts = [(300, 0), (512, 4000), (100, 0)]
    assert prefill_batch_ms(TIMES, prompts) == pytest.approx(prefill_batch_ms(TRUE, prompts), rel=0.01)
    contexts = [500, 3000, 20, 1000]
    assert decode_batch_ms(TIMES, contexts) == pytest.approx(decode_batch_ms(TRUE, contexts), rel=0.01)


@given(
    st.tuples(st.floats(0, 9000), st.floats(0, 1e8), st.integers(0, 400), st.floats(0, 1e7)),
    st.sampled_from([0, 2]),
    st.floats(1, 500),
)
def test_more_work_never_takes_less(work: tuple[float, float, float, float], which: int, more: float) -> None:
    work = (work[0], work[1] if work[0] else 0, work[2], work[3] if work[2] else 0)
    larger = list(work)
    larger[which] += more
    larger[which + 1] += more  # each new one attends to itself at least
    if (which == 0 and work[0] == 0) or (which == 2 and work[2] == 0):
        return  # a step of another kind, which engines run in another way
    assert TIMES.mixed_ms(*larger) >= TIMES.mixed_ms(*work) - 1e-9


def test_no_work_takes_no_time() -> None:
    assert TIMES.mixed_ms(0, 0, 0, 0) == 0
    assert TIMES.prefill_ms(0, 0) == 0


def test_a_mixed_step_pays_for_the_weights_once() -> None:
    mixed = TIMES.mixed_ms(32, 32 * 16, 32, 32 * 1000)
    apart = TIMES.prefill_ms(32, 32 * 16) + TIMES.decode_ms(32, 32 * 1000)
    assert mixed < 0.6 * apart


def test_transfer_goes_by_the_link() -> None:
    link = Link(gb_per_s=50, latency_ms=2)
    assert TIMES.transfer_ms(1000, link) == pytest.approx(2 + 1000 * 131072 / 50e9 * 1e3)
    assert TIMES.kv_capacity_tokens == 400_000


def test_sums_of_prompts() -> None:
    work = prompts_work([(3, 0), (2, 10)])
    assert work.new_tokens == 5
    assert work.context_tokens == (1 + 2 + 3) + (11 + 12)


def test_a_table_survives_writing() -> None:
    table = table_of()
    assert msgspec.json.decode(msgspec.json.encode(table), type=StepTable) == table


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"tokens": (1, 1, 2)}, "tokens"),
        ({"sequences": (4,)}, "sequences"),
        ({"contexts": (2, 1)}, "contexts"),
        ({"dense_ms": (1.0,)}, "differ"),
        ({"decode_attention_ms": ((1.0,),)}, "differ"),
    ],
)
def test_what_is_no_table_is_refused(change: dict, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        msgspec.structs.replace(table_of(), **change)
