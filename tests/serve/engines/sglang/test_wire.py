"""SGLang's answers, however they are cut."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.errors import ProtocolError
from tokenmill.protocol.items import TokenLogprobs
from tokenmill.serve.engines.sglang.wire import (
    Chunk,
    MetaInfo,
    error_of,
    failure_of,
    new_tokens,
    prompt_logprobs,
    read_chunk,
    token_logprobs,
)


@given(st.lists(st.integers(0, 999), min_size=1), st.data(), st.booleans())
def test_a_stream_may_be_cut_anywhere(tokens: list[int], data: st.DataObject, incremental: bool) -> None:
    """Log probabilities follow their tokens; a server may also say the same again."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=6)))
    entries = [(-float(token), token, None) for token in tokens]
    got: list[int] = []
    scores: list[TokenLogprobs] = []
    start = 0
    for end in [*cuts, len(tokens)]:
        first = start if incremental else 0
        meta = MetaInfo(completion_tokens=end, output_token_logprobs=list(entries[first:end]))
        fresh = new_tokens(Chunk(tokens[first:end], meta), len(got))
        scores += token_logprobs(meta, len(fresh), 0) or []
        got += fresh
        start = end
    assert got == tokens
    assert [score.logprob for score in scores] == [-float(token) for token in tokens]


@given(st.binary())
def test_no_bytes_crash_it(payload: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        chunk = read_chunk(payload)
        error_of(chunk)
        with contextlib.suppress(ProtocolError):
            new_tokens(chunk, 0)
    failure_of(500, payload)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("output_ids", "meta_info", "error", "message"), JSON))
)
def test_no_json_crashes_it(content: dict[str, object]) -> None:
    test_no_bytes_crash_it.hypothesis.inner_test(msgspec.json.encode(content))  # type: ignore[attr-defined]


def test_scores_for_another_number_of_tokens() -> None:
    meta = MetaInfo(completion_tokens=2, output_token_logprobs=[(-1.0, 5, None)])
    with pytest.raises(ProtocolError, match="another number of tokens"):
        token_logprobs(meta, 2, 0)
    with pytest.raises(ProtocolError, match="scored 0 of 3 prompt tokens"):
        prompt_logprobs(meta, 3, 0)
    assert token_logprobs(meta, 1, None) is None
    assert token_logprobs(meta, 0, 3) is None


@pytest.mark.parametrize(
    ("status", "retryable"), [(400, False), (404, False), (408, True), (429, True), (500, True)]
)
def test_who_is_at_fault(status: int, retryable: bool) -> None:
    failure = failure_of(status, b'{"error": {"message": "no"}}')
    assert (failure.status, failure.message, failure.retryable) == (status, "no", retryable)
