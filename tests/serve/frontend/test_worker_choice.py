"""Choosing workers for a flow: at once, later, or nobody."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tokenmill.decide.router.types import Decision, RouteRequest
from tokenmill.errors import QueueTimeout
from tokenmill.protocol.ids import RequestId, WorkerId
from tokenmill.serve.frontend.flow_metrics import FlowMetrics
from tokenmill.serve.frontend.flow_words import DeadlinePassed, NoWorkerFound, Route, Routed
from tokenmill.serve.frontend.plant import Outcome
from tokenmill.serve.frontend.timeline import SequenceTimeline
from tokenmill.serve.frontend.worker_choice import Chosen, WorkerChoice

WANTED = RouteRequest(request_id=RequestId("r"), packed=b"", output_tokens=1)
FOUND = Decision(WorkerId("d"), WorkerId("p"), cached_tokens=7)


class Plant:
    """Decides as it is told; who waits is answered by the test."""

    def __init__(self, decision: Decision | None) -> None:
        self.decision = decision
        self.excluded: list[set[str]] = []
        self.answer: Callable[[Outcome], None] | None = None

    def decide(self, _request, excluded):
        self.excluded.append(set(excluded))
        return self.decision

    def wait(self, _request, excluded, on_decision):
        self.excluded.append(set(excluded))
        self.answer = on_decision
        return self

    def cancel(self):
        self.answer = None


class Asked:
    """A choice that was asked for."""

    def __init__(self, decision: Decision | None, *, may_wait: bool = True) -> None:
        self.plant = Plant(decision)
        self.chosen: list[Chosen] = []
        self.choice = WorkerChoice(self.plant, SequenceTimeline(1, lambda: 0.0, FlowMetrics()))
        route = Route(frozenset({WorkerId("left")}), may_wait)
        self.choice.ask(WANTED, route, self.chosen.append, without=frozenset({WorkerId("unfit")}))


def test_somebody_is_there():
    asked = Asked(FOUND)
    assert asked.chosen == [Routed(WorkerId("d"), WorkerId("p"))]
    assert asked.plant.excluded == [{"left", "unfit"}]
    assert asked.choice.cached_tokens == 7


def test_nobody_is_there_and_none_may_be_waited_for():
    assert Asked(None, may_wait=False).chosen == [NoWorkerFound()]


@pytest.mark.parametrize(
    ("outcome", "chosen"),
    [
        (FOUND, Routed(WorkerId("d"), WorkerId("p"))),
        (None, NoWorkerFound()),
        (late := QueueTimeout("too late"), DeadlinePassed(late)),
    ],
    ids=["somebody came", "nobody came", "refused"],
)
def test_waiting_comes_to_an_end(outcome, chosen):
    asked = Asked(None)
    assert asked.chosen == []
    assert asked.plant.excluded == [{"left", "unfit"}] * 2
    asked.plant.answer(outcome)
    assert asked.chosen == [chosen]
    asked.choice.stop()
    assert asked.plant.answer is not None, "who waits no more was cancelled"


def test_who_is_stopped_waits_no_longer():
    asked = Asked(None)
    asked.choice.stop()
    assert asked.plant.answer is None
    assert asked.chosen == []
