from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenmill.operate.deploy.lines import MAX_LINE_BYTES, LineSplitter


@given(st.lists(st.text("ab\r\nü", max_size=10).map(str.encode)))
def test_any_split_of_the_bytes_gives_the_same_lines(chunks):
    splitter = LineSplitter()
    lines = [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.end()
    whole = b"".join(chunks).decode()
    expected = [line.rstrip("\r") for line in whole.split("\n")]
    assert lines == (expected if whole and not whole.endswith("\n") else expected[:-1])


def test_a_line_without_end_is_cut_and_nothing_piles_up():
    splitter = LineSplitter()
    lines = []
    for _ in range(100):
        lines += splitter.feed(b"x" * 5000)
        assert len(splitter._rest) <= MAX_LINE_BYTES
    lines += splitter.end()
    assert "".join(lines) == "x" * 500_000
    assert max(map(len, lines)) == MAX_LINE_BYTES


def test_bytes_that_are_no_text_are_shown_as_such():
    assert LineSplitter().feed(b"a\xffb\n") == ["a\ufffdb"]
