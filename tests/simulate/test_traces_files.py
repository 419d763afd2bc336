"""Reading traces: the formats by their content, and what is said of files that cannot be read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenmill.errors import ConfigError
from tokenmill.simulate.traces import TracedRequest
from tokenmill.simulate.traces_files import MOST_TOKENS, read_trace

FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


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


def test_json_lines_may_say_class_tenant_and_priority(tmp_path: Path) -> None:
    line = {
        "timestamp": 0,
        "input_length": 9,
        "output_length": 1,
        "class": "gold",
        "tenant": "a",
        "priority": 3,
    }
    trace = read_trace(write(tmp_path / "any.name", json.dumps(line)))
    assert trace.requests == [TracedRequest(0.0, 9, 1, (), "gold", "a", 3)]


@pytest.mark.parametrize(
    "header",
    [
        "arrived_at,num_prefill_tokens,num_decode_tokens",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "Timestamp,Request tokens,Response tokens",
        "\ufeffarrival_time , Prompt_Tokens , completion_tokens",
    ],
)
def test_tables_are_read_under_all_their_names(tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "azure.csv", header, "0.0,374,44", "4.3,9,1", "")
    assert read_trace(path).requests == [TracedRequest(0.0, 374, 44), TracedRequest(4.3, 9, 1)]


def test_columns_may_stand_in_any_order_among_others(tmp_path: Path) -> None:
    header = "Model,Response tokens,Timestamp,Total tokens,Request tokens,priority,user"
    path = write(tmp_path / "a.csv", header, "ChatGPT,12.0,5,30,18,,me")
    assert read_trace(path).requests == [TracedRequest(5.0, 18, 12, (), "", "me", 0)]


def test_dates_count_from_the_first_request(tmp_path: Path) -> None:
    path = write(
        tmp_path / "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens",
        "2023-11-16 18:15:50.6805900,396,109",
        "2023-11-16 18:15:46.6805900,374,44",
        "2023-11-16T18:15:48.5+00:00,1,1",
    )
    requests = read_trace(path).requests
    assert [r.prompt_tokens for r in requests] == [374, 1, 396]
    assert [r.at_s for r in requests] == pytest.approx([0.0, 1.81941, 4.0], abs=1e-5)


GOOD = '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]}'


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ([GOOD, '{"timestamp": 0}'], r"t, line 2: .*input_length"),
        ([GOOD, "{"], "t, line 2: "),
        ([GOOD.replace("[1, 2]", "[1]")], "line 1: hash_ids: 600 tokens need 2 .*, not 1"),
        ([GOOD.replace("[1, 2]", "[1, -2]")], "line 1: hash_ids: -2; give 0 or more"),
        ([GOOD.replace("600", "-600")], "line 1: input_length: -600"),
        ([GOOD.replace('"output_length": 1', f'"output_length": {MOST_TOKENS + 1}')], "output_length: 1000"),
        ([GOOD.replace('"timestamp": 0', '"timestamp": -5')], "line 1: timestamp: -0.005; give a time"),
        ([GOOD.replace("{", '{"priority": 101, ')], "line 1: priority: 101; give -100 to 100"),
        (
            ["arrived_at,num_prefill_tokens", "1,2"],
            "line 1: .*no column for the output's tokens; name one num_",
        ),
        (["a,b", "1,2"], "no column for the arrival"),
        (["PAR1 not a trace"], "line 1: .*JSON lines as Mooncake's, or comma-separated as Azure's"),
        (["time,input_tokens,output_tokens", "soon,2,3"], 'line 2: time: "soon"; give seconds, or a date'),
        (
            ["time,input_tokens,output_tokens", "1,2,3", "1,2.5,3"],
            'line 3: input_tokens: "2.5"; give a whole',
        ),
        (["time,input_tokens,output_tokens", "1,2"], "line 2: output_tokens: nothing; give a whole"),
        (["time,input_tokens,output_tokens", "1,-2,3"], "line 2: input_tokens: -2; give tokens"),
        (["time,input_tokens,output_tokens", "nan,2,3"], "line 2: time: nan; give a time"),
        (["time,input_tokens,output_tokens", "1,inf,3"], 'line 2: input_tokens: "inf"; give a whole'),
        (["time,input_tokens,output_tokens"], "there are no requests in it"),
        (["", "  "], "the file is empty"),
    ],
)
def test_a_bad_file_is_named_with_line_field_and_fix(tmp_path: Path, lines: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_trace(write(tmp_path / "t", *lines))
    assert caught.value.param == "trace"
    assert "trace t" in caught.value.message


def test_a_missing_file_says_what_else_can_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; name a file, or a kind of load such as poisson:"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_trace(tmp_path)


@FILES
@given(st.binary(max_size=300))
def test_any_bytes_are_a_trace_or_a_config_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any"
    path.write_bytes(data)
    try:
        assert read_trace(path).requests
    except ConfigError as error:
        said = error.message
    else:
        said = "trace any"
    assert said.startswith("trace any")


@FILES
@given(st.sampled_from(["time,input_tokens,output_tokens\n", '{"timestamp": 1, ']), st.text(max_size=80))
def test_any_text_after_a_good_start_is_a_trace_or_a_config_error(
    tmp_path: Path, start: str, text: str
) -> None:
    path = tmp_path / "any"
    path.write_text(start + text, encoding="utf-8", errors="surrogatepass", newline="")
    try:
        read_trace(path)
    except ConfigError as error:
        said = error.message
    else:
        said = "trace any"
    assert said.startswith("trace any")


REQUESTS = st.lists(
    st.builds(
        TracedRequest,
        at_s=st.floats(0, 1e6).map(lambda at: round(at, 3)),
        prompt_tokens=st.integers(1, MOST_TOKENS),
        output_tokens=st.integers(1, MOST_TOKENS),
        klass=st.sampled_from(["", "gold"]),
        tenant=st.sampled_from(["", "a b"]),
        priority=st.integers(-100, 100),
    ),
    min_size=1,
    max_size=20,
)


@FILES
@given(REQUESTS)
def test_what_was_written_is_read(tmp_path: Path, requests: list[TracedRequest]) -> None:
    table = ["time,input_tokens,output_tokens,class,tenant,priority"]
    table += [
        f"{r.at_s!r},{r.prompt_tokens},{r.output_tokens},{r.klass},{r.tenant},{r.priority}" for r in requests
    ]
    lines = [
        json.dumps(
            {
                "timestamp": r.at_s * 1000,
                "input_length": r.prompt_tokens,
                "output_length": r.output_tokens,
                "class": r.klass,
                "tenant": r.tenant,
                "priority": r.priority,
            }
        )
        for r in requests
    ]
    wanted = sorted(requests, key=lambda r: r.at_s)
    assert read_trace(write(tmp_path / "t", *table)).requests == wanted
    found = read_trace(write(tmp_path / "t", *lines)).requests
    assert [r.prompt_tokens for r in found] == [r.prompt_tokens for r in wanted]
    assert all(math.isclose(a.at_s, b.at_s, abs_tol=1e-9) for a, b in zip(found, wanted, strict=True))
