from hypothesis import given
from hypothesis import strategies as st

from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.items import Failed, Finished, FinishReason, Item, TokenLogprobs, Tokens
from tokenmill.serve.engines.outbox import JoinedItems

A, B = RequestId("a"), RequestId("b")


def joined(*steps: list[tuple[RequestId, Item]]) -> list[tuple[RequestId, Item]]:
    box = JoinedItems()
    for step in steps:
        box.add(step)
    return box.items


def test_tokens_of_several_steps_become_one_item_with_the_end() -> None:
    finished = Finished(2, [12], FinishReason.LENGTH, cached_tokens=16)
    got = joined(
        [(A, Tokens(0, [10])), (B, Tokens(5, [50]))],
        [(A, Tokens(1, [11]))],
        [(B, Tokens(6, [51])), (A, finished)],
    )
    assert got == [
        (A, Finished(0, [10, 11, 12], FinishReason.LENGTH, cached_tokens=16)),
        (B, Tokens(5, [50, 51])),
    ]


def test_log_probabilities_stay_with_their_tokens() -> None:
    got = joined(
        [(A, Tokens(0, [1], [TokenLogprobs(-0.5)]))],
        [(A, Tokens(1, [2], [TokenLogprobs(-1.5)]))],
    )
    assert got == [(A, Tokens(0, [1, 2], [TokenLogprobs(-0.5), TokenLogprobs(-1.5)]))]


def test_what_says_something_else_keeps_its_place() -> None:
    failed = Failed(500, "engine_error", "broken")
    tokens = Tokens(0, [1])
    assert joined([(A, tokens)], [(A, failed)]) == [(A, tokens), (A, failed)]


def test_a_gap_is_not_papered_over() -> None:
    assert joined([(A, Tokens(0, [1]))], [(A, Tokens(2, [3]))]) == [
        (A, Tokens(0, [1])),
        (A, Tokens(2, [3])),
    ]


def test_what_was_given_is_not_changed() -> None:
    first = Tokens(0, [1])
    joined([(A, first)], [(A, Tokens(1, [2]))])
    assert first == Tokens(0, [1])


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=3, unique=True), max_size=12))
def test_every_request_gets_its_tokens_in_order(steps: list[list[str]]) -> None:
    counts: dict[str, int] = {}
    given_items: list[list[tuple[RequestId, Item]]] = []
    for step in steps:
        given_items.append([])
        for name in step:
            at = counts.get(name, 0)
            given_items[-1].append((RequestId(name), Tokens(at, [at * 7])))
            counts[name] = at + 1
    got = joined(*given_items)
    assert len(got) == len(counts)
    for request_id, item in got:
        assert isinstance(item, Tokens)
        assert item.index == 0
        assert item.tokens == [at * 7 for at in range(counts[request_id])]
