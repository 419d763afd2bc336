"""Fields that shape the output: passed on as written where all engines understand them, else refused."""

from __future__ import annotations

import pytest

SCHEMA = {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}
KNOWN = {"constraints": ["response_format", "structured_outputs"]}
CHOICE = {"choice": ["yes", "no"]}


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
async def test_they_reach_the_worker_as_written(plant, endpoint):
    worker = await plant.worker("b1", card=KNOWN)
    answer = await getattr(plant, endpoint)(response_format=SCHEMA, structured_outputs=CHOICE)
    assert answer.status == 200
    assert worker.requests[0].sampling.constraints == {
        "response_format": SCHEMA,
        "structured_outputs": CHOICE,
    }


@pytest.mark.parametrize("endpoint", ["chat", "complete"])
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": SCHEMA}, "response_format"),
        ({"structured_outputs": CHOICE}, "structured_outputs"),
    ],
)
async def test_one_engine_that_does_not_know_them_is_enough(plant, endpoint, fields, param):
    await plant.worker("b1", card=KNOWN)
    await plant.worker("b2")
    answer = await getattr(plant, endpoint)(**fields)
    assert (answer.status, answer.json()["error"]["param"]) == (400, param)


async def test_what_asks_for_nothing_is_never_refused(aggregated):
    answer = await aggregated.chat(response_format={"type": "text"}, structured_outputs={})
    assert answer.status == 200
    assert aggregated.workers[0].requests[0].sampling.constraints == {}
