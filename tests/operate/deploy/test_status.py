from __future__ import annotations

import pytest

from tokenmill.operate.deploy.status import duration, health, loads


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0.4, "0s"), (59, "59s"), (61, "1m1s"), (3600, "1h0m"), (90061, "1d1h")],
)
def test_spans_are_written_in_two_units(seconds, text):
    assert duration(seconds) == text


def test_loads_are_read_by_pid_and_strange_answers_give_nothing():
    worker = {"pid": 7, "running": 2, "waiting": 1, "kv_blocks_used": 1, "kv_blocks_total": 4}
    remote = worker | {"pid": 9, "kv_blocks_total": 0, "circuit": "open"}
    broken = [{"pid": 8}, 3, worker | {"kv_blocks_total": "many"}]
    assert loads({"worker_list": [worker, remote, *broken]}) == {
        7: "2 run, 1 wait, KV 25%",
        9: "2 run, 1 wait, circuit open",
    }
    assert loads({"worker_list": 3}) == loads({}) == {}


def test_a_front_door_that_is_not_there_has_no_view():
    assert health(["http://127.0.0.1:9"]) == {}
