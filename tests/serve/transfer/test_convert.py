"""Where tokens go when block sizes, block tables and dtypes differ."""

import importlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.errors import ConfigError, HandoffFailed
from tokenmill.serve.transfer.base import KvLayout
from tokenmill.serve.transfer.convert import check_convertible, convert, paired, runs


@st.composite
def tables(draw, tokens):
    size = draw(st.sampled_from([1, 3, 8, 16]))
    blocks = -(-tokens // size)
    return size, draw(st.permutations(range(blocks + 3)))[:blocks]


def layout(block_tokens=16, token_bytes=64, dtype="float32", planes=2):
    return KvLayout(planes, block_tokens, token_bytes, dtype)


def slots(spans):
    return [slot for first, count in spans for slot in range(first, first + count)]


@given(st.data(), st.integers(1, 60), st.integers(0, 60))
def test_runs_are_the_tokens_slots_in_order(data, tokens, first):
    size, blocks = data.draw(tables(tokens))
    found = runs(layout(size), blocks, first, tokens)
    assert slots(found) == [blocks[token // size] * size + token % size for token in range(first, tokens)]
    assert all(a + n != b for (a, n), (b, _) in itertools.pairwise(found)), "neighbours not merged"


@given(st.data(), st.integers(1, 60))
def test_pairs_keep_every_token_with_its_place(data, tokens):
    (size_a, blocks_a), (size_b, blocks_b) = data.draw(tables(tokens)), data.draw(tables(tokens))
    source, target = runs(layout(size_a), blocks_a, 0, tokens), runs(layout(size_b), blocks_b, 0, tokens)
    pairs = paired(source, target)
    assert [s + i for s, _, n in pairs for i in range(n)] == slots(source)
    assert [t + i for _, t, n in pairs for i in range(n)] == slots(target)
    assert all(n > 0 for _, _, n in pairs)


def test_contiguous_tables_are_one_run():
    assert paired(runs(layout(), [3, 4, 5], 5, 48), runs(layout(8), [0, 1, 2, 3, 4, 5], 5, 48)) == [
        (53, 5, 43)
    ]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (layout(), layout(planes=4)),
        (layout(), layout(token_bytes=32)),
        (layout(dtype="bytes"), layout()),
        (layout(token_bytes=64, dtype="bfloat16"), layout(token_bytes=64, dtype="float32")),
        (layout(dtype="float8"), layout(dtype="float8")),
    ],
)
def test_unlike_layouts_are_refused_by_name(source, target):
    with pytest.raises(HandoffFailed) as caught:
        check_convertible(source, target)
    assert str(source) in caught.value.message
    assert str(target) in caught.value.message


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (layout(8), layout(32)),
        (layout(dtype="bytes"), layout(4, dtype="bytes")),
        (layout(token_bytes=32, dtype="bfloat16"), layout(token_bytes=64)),
        (layout(token_bytes=64), layout(token_bytes=32, dtype="float16")),
    ],
)
def test_like_layouts_pass(source, target):
    check_convertible(source, target)


def test_without_numpy_the_user_is_told_what_to_install(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    check_convertible(layout(8), layout(16))
    with pytest.raises(ConfigError, match="pip install numpy"):
        check_convertible(layout(token_bytes=32, dtype="bfloat16"), layout(token_bytes=64))


def test_bfloat16_to_float32_is_exact():
    bits = np.arange(1 << 16, dtype=np.uint16)
    wide = np.frombuffer(convert(bits.tobytes(), "bfloat16", "float32"), np.uint32)
    assert np.array_equal(wide, bits.astype(np.uint32) << 16)


@settings(deadline=None)  # the first example imports torch
@given(st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=200))
def test_float32_to_bfloat16_rounds_as_torch_does(bits):
    torch = pytest.importorskip("torch")
    wide = np.array(bits, np.uint32).view(np.float32)
    found = np.frombuffer(convert(wide.tobytes(), "float32", "bfloat16"), np.uint16)
    expected = torch.from_numpy(wide.copy()).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
    nan = np.isnan(wide)
    assert np.array_equal(found[~nan], expected[~nan])
    assert np.isnan((found[nan].astype(np.uint32) << 16).view(np.float32)).all()


@pytest.mark.parametrize(
    ("wide_bits", "narrow_bits"),
    [
        (0x3F808000, 0x3F80),  # half way: to even, down
        (0x3F818000, 0x3F82),  # half way: to even, up
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # overflows to infinity
        (0xFF800000, 0xFF80),
        (0x7FFFFFFF, 0x7FFF),  # a NaN whose rounding would wrap around
        (0x7F800001, 0x7FC0),  # a NaN whose upper half is that of infinity
    ],
)
def test_bfloat16_corner_cases(wide_bits, narrow_bits):
    wide = np.array([wide_bits], np.uint32).tobytes()
    assert np.frombuffer(convert(wide, "float32", "bfloat16"), np.uint16)[0] == narrow_bits


def test_float16_goes_both_ways():
    half = np.array([0, 1.5, -65504, 6e-8, np.inf], np.float16)
    there = convert(half.tobytes(), "float16", "float32")
    assert np.array_equal(np.frombuffer(there, np.float32), half.astype(np.float32))
    assert bytes(convert(there, "float32", "float16")) == half.tobytes()
    large = np.array([0x4780], np.uint16).tobytes()  # 65536 in bfloat16
    assert np.isinf(np.frombuffer(convert(large, "bfloat16", "float16"), np.float16))[0]
