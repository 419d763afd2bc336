from __future__ import annotations

from tokenmill.decide.router.caches import Caches
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import RequestId
from tokenmill.protocol.kv_events import BlocksStored, CacheCleared, KvEvents


def caches(**settings) -> Caches:
    return Caches(RouterSettings(**settings))


def name(number: int) -> RequestId:
    return RequestId(f"r{number}")


def test_names_are_kept_until_the_last_worker_was_sent_to():
    known = caches()
    one, two = known.index.join(), known.index.join()
    known.routed(name(1), {16: [5, 6]}, 2)
    assert known.sent(one, 16, name(1), 0.0) == [5, 6]
    assert known.sent(two, 16, name(1), 0.0) == [5, 6]
    assert known.sent(two, 16, name(1), 0.0) == []
    assert known.sent(two, 16, name(2), 0.0) == []


def test_names_of_another_block_size_are_of_no_use():
    known = caches()
    known.routed(name(1), {16: [5, 6]}, 1)
    assert known.sent(known.index.join(), 32, name(1), 0.0) == []


def test_prompts_that_are_never_sent_are_forgotten():
    known = caches()
    for number in range(10_000):
        known.routed(name(number), {16: [number]}, 1)
    owner = known.index.join()
    assert known.sent(owner, 16, name(0), 0.0) == []
    assert known.sent(owner, 16, name(9_999), 0.0) == [9_999]
    assert len(known._routed) <= 4096


def test_a_clear_within_a_batch_moves_the_rest_to_a_clean_place():
    known = caches()
    owner = known.index.join()
    first, complete = known.changed(owner, KvEvents(0, [CacheCleared(), BlocksStored([1, 2])]))
    assert (first, complete) == (owner, True)  # it was clean
    second, complete = known.changed(
        owner, KvEvents(2, [BlocksStored([3]), CacheCleared(), BlocksStored([4])])
    )
    assert complete
    assert second.slot != owner.slot
    assert (second.blocks, second.next_event, second.told) == (1, 5, True)


def test_predictions_last_as_long_as_the_worker_is_silent():
    known = caches(predicted_ttl_s=5.0, approximate_ttl_s=100.0)
    silent, telling = known.index.join(), known.index.join()
    known.changed(telling, KvEvents(0, [CacheCleared()]))
    known.predict(silent, [1], 0.0)
    known.predict(telling, [1], 0.0)
    known.predictions.expire(50.0)
    assert known.predictions.masks == {1: silent.bit}
