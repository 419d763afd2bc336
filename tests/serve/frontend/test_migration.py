from __future__ import annotations

import pytest

from tokenmill.errors import BadRequest, Overloaded, WorkerFailed, WorkerLost, WorkerStalled
from tokenmill.protocol.items import Failed
from tokenmill.serve.frontend.migration import MigrationReason, error_of, reason_of, with_reason
from tokenmill.serve.frontend.openai.errors import code_of, status_of


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (WorkerLost("x"), "lost"),
        (WorkerStalled("x"), "stalled"),
        (Overloaded("x", retry_after_s=1), "refused"),
        (error_of(Failed(429, "queue_full", "x", retryable=True)), "refused"),
        (error_of(Failed(503, "worker_draining", "x", retryable=True)), "drained"),
        (error_of(Failed(503, "worker_stopping", "x", retryable=True)), "drained"),
        (error_of(Failed(503, "engine_broken", "x", retryable=True)), "failed"),
        (WorkerFailed("x"), "failed"),
    ],
)
def test_each_trouble_has_a_reason(error, reason):
    assert reason_of(error) is MigrationReason(reason)


@pytest.mark.parametrize(
    "error",
    [
        WorkerStalled("x"),
        Overloaded("x", retry_after_s=7),
        BadRequest("x", param="prompt"),
        error_of(Failed(422, "no_room", "x")),
    ],
)
def test_a_reason_is_added_and_all_else_kept(error):
    added = with_reason(error, "because")
    assert type(added) is type(error)
    assert (added.message, str(added), error.message) == ("x; because", "x; because", "x")
    assert (code_of(added), status_of(added)) == (code_of(error), status_of(error))
    assert vars(added).keys() == vars(error).keys()
    assert added.__cause__ is error
