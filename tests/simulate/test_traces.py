"""Reading traces, and what prompts are made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.errors import ConfigError
from tokenmill.protocol.block_hashes import block_hashes, pack_tokens
from tokenmill.simulate.prompts import OWN_TOKENS_START, PromptMaker, unpack
from tokenmill.simulate.traces import Trace, TracedRequest, read_trace, sessions_of


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_mooncake_lines_are_read_in_order_of_arrival(tmp_path: Path) -> None:
    path = write(
        tmp_path / "chat.jsonl",
        '{"timestamp": 3000, "input_length": 600, "output_length": 5, "hash_ids": [0, 7]}',
        "",
        '{"timestamp": 1500, "input_length": 512, "output_length": 0, "hash_ids": [0]}',
    )
    trace = read_trace(path)
    assert trace.requests == [TracedRequest(1.5, 512, 1, (0,)), TracedRequest(3.0, 600, 5, (0, 7))]
    assert trace.prefix_block_tokens == 512
    assert trace.prompt_tokens == 1112


def test_azure_lines_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "azure.csv", "arrived_at,num_prefill_tokens,num_decode_tokens", "0.0,374,44", "4.3,9,1"
    )
    assert read_trace(path).requests == [TracedRequest(0.0, 374, 44), TracedRequest(4.3, 9, 1)]


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("a.jsonl", '{"timestamp": 0}', "line 1"),
        (
            "a.jsonl",
            '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}',
            "2 hash_ids",
        ),
        ("a.csv", "arrived_at,num_prefill_tokens\n1,2", "line 2"),
        ("a.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\nsoon,2,3", "line 2"),
        ("a.parquet", "", "give a .jsonl file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path: Path, name: str, line: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_trace(write(tmp_path / name, line))


def test_a_trace_can_be_denser_and_cut() -> None:
    trace = Trace([TracedRequest(at, 10, 1) for at in (0.0, 10.0, 20.0, 30.0)])
    assert [r.at_s for r in trace.faster(4.0).requests] == [0.0, 2.5, 5.0, 7.5]
    assert [r.at_s for r in trace.between(10.0, 30.0).requests] == [0.0, 10.0]


def test_prompts_are_equal_as_far_as_the_trace_says() -> None:
    requests = [TracedRequest(0, 20, 1, (0, 1, 2)), TracedRequest(0, 24, 1, (0, 1, 3))]
    maker = PromptMaker(Trace(requests, prefix_block_tokens=8))
    first, second = (unpack(maker.packed(request)) for request in requests)
    assert (len(first), len(second)) == (20, 24)
    assert first[:16] == second[:16]
    assert not set(first[16:]) & set(second)
    names = [block_hashes(prompt, 8) for prompt in (first, second)]
    assert names[0] == names[1][:2]


def test_prompts_without_ids_and_outputs_share_nothing() -> None:
    requests = [TracedRequest(0, 5, 1), TracedRequest(0, 5, 1)]
    maker = PromptMaker(Trace(requests))
    tokens = [*unpack(maker.packed(requests[0])), *unpack(maker.packed(requests[1])), *maker.own(3)]
    assert len(set(tokens)) == 13
    assert min(tokens) >= OWN_TOKENS_START


def test_packed_prompts_are_what_is_hashed() -> None:
    request = TracedRequest(0, 9, 1, (4, 5))
    packed = PromptMaker(Trace([request], prefix_block_tokens=8)).packed(request)
    assert packed == pack_tokens([*range(32, 40), 40])


def test_ids_that_leave_no_token_ids_are_refused() -> None:
    huge = TracedRequest(0, 512, 1, (1 << 22,))
    with pytest.raises(ValueError, match="too large"):
        PromptMaker(Trace([huge]))


def test_a_session_is_the_first_block_that_is_not_a_common_head() -> None:
    heads = [TracedRequest(0, 24, 1, (0, 10 + number, 500 + number)) for number in range(200)]
    again = TracedRequest(1, 32, 1, (0, 12, 502, 900))
    sessions = sessions_of(Trace([*heads, again, TracedRequest(2, 8, 1)], prefix_block_tokens=8))
    assert sessions[2] == sessions[200] != ""
    assert len(set(sessions[:200])) == 200
    assert sessions[201] == ""
