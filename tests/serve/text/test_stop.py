from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenmill.errors import BadRequest
from tokenmill.serve.text.stop import StopStrings

TEXT = st.text("abc]\\^-", max_size=40)
STOPS = st.lists(st.text("abc]\\^-", min_size=1, max_size=5), max_size=4)
SIZES = st.lists(st.integers(0, 5), min_size=1, max_size=8).filter(any)


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Look at the text again after each character, as if it was all there was."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            hit = max(found, key=len)
            return text[: end if include else end - len(hit)], hit
    return text, None


def split(text: str, sizes: list[int]) -> list[str]:
    pieces, at, turn = [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        pieces.append(text[at : at + size])
        at, turn = at + size, turn + 1
    return pieces


@settings(max_examples=400, deadline=None)
@given(text=TEXT, stops=STOPS, sizes=SIZES, include=st.booleans())
def test_any_split_gives_what_a_search_of_the_whole_gives(
    text: str, stops: list[str], sizes: list[int], include: bool
) -> None:
    search = StopStrings(stops, include_in_output=include)
    out = "".join(search.push(piece) for piece in split(text, sizes)) + search.finish()
    assert (out, search.hit) == expected(text, stops, include)


@settings(max_examples=200, deadline=None)
@given(text=TEXT, stop=st.text("abc", min_size=1, max_size=4), sizes=SIZES)
def test_one_stop_is_found_where_find_finds_it(text: str, stop: str, sizes: list[int]) -> None:
    search = StopStrings([stop])
    out = "".join(search.push(piece) for piece in split(text, sizes)) + search.finish()
    at = text.find(stop)
    assert out == (text if at < 0 else text[:at])


@settings(max_examples=200, deadline=None)
@given(text=TEXT, stops=STOPS, sizes=SIZES)
def test_no_more_is_held_than_may_be_a_beginning(text: str, stops: list[str], sizes: list[int]) -> None:
    search, pushed, sent = StopStrings(stops), "", ""
    for piece in split(text, sizes):
        pushed += piece
        sent += search.push(piece)
        if search.hit is not None:
            return
        held = pushed[len(sent) :]
        assert sent + held == pushed
        longest = max(
            (n for stop in stops for n in range(1, len(stop)) if pushed.endswith(stop[:n])), default=0
        )
        assert len(held) == longest


def test_hit_ends_the_text() -> None:
    search = StopStrings(["\n\n", "User:"])
    assert search.push("one\n") == "one"
    assert search.push("\ntwo") == ""
    assert search.hit == "\n\n"
    assert [search.push("three"), search.finish()] == ["", ""]


def test_stop_may_be_kept() -> None:
    search = StopStrings(["END"], include_in_output=True)
    assert [search.push("the E"), search.push("ND of"), search.finish()] == ["the ", "END", ""]


def test_false_alarm_is_released() -> None:
    search = StopStrings(["User:"])
    assert [search.push("Us"), search.push("e"), search.push("d"), search.push("Use")] == ["", "", "Used", ""]
    assert search.finish() == "Use"
    assert search.hit is None


def test_without_stops_text_is_passed_as_it_is() -> None:
    search, text = StopStrings([]), "anything"
    assert search.push(text) is text
    assert search.finish() == ""


def test_long_stop_costs_no_more_than_its_length() -> None:
    """The naive way looks at each of 20 000 held characters again for each new one."""
    search = StopStrings(["a" * 20_000 + "b"])
    assert "".join(search.push("a") for _ in range(60_000)) == "a" * 40_000
    assert search.push("b") == ""
    assert search.hit is not None


def test_empty_stop_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        StopStrings(["x", ""])
    assert caught.value.param == "stop[1]"
