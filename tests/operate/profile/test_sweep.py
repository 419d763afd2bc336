"""The order of a sweep, and when it goes no further."""

import pytest

from tokenmill.errors import WorkerFailed
from tokenmill.operate.profile.points import Limits, Point, decode_points, prefill_points
from tokenmill.operate.profile.probe import ProbeFacts, Prompts
from tokenmill.operate.profile.runs import Run, Step
from tokenmill.operate.profile.sweep import Effort, sweep

LIMITS = Limits(prefill_tokens=256, sequences=8, context_tokens=1024, kv_tokens=10**6)


class Pretended:
    """A device of 1 ms a token of prefill, and 2 ms a decode step; fails at the point ``bad``."""

    def __init__(self, bad: Point | None = None) -> None:
        self.ran: list[Point] = []
        self._bad = bad

    async def start(self) -> ProbeFacts:
        return ProbeFacts(model="m", engine="e", method="steps")

    async def run(self, point: Point) -> Run:
        self.ran.append(point)
        if point == self._bad:
            raise WorkerFailed("it broke")
        tokens = point.prompts * point.prompt_tokens
        prompt = Step(tokens, tokens * (point.prompt_tokens + 1) / 2, 0, 0, float(tokens))
        decodes = [Step(0, 0, point.prompts, tokens + i, 2.0) for i in range(point.output_tokens - 1)]
        return Run(point, 0.0, [], decodes or [prompt])

    async def close(self) -> None:
        return


async def test_all_points_are_run_and_the_first_run_only_warms_up() -> None:
    probe, told = Pretended(), []
    steps = await sweep(probe, LIMITS, Effort(3, 1e9), "steps", lambda point, ms: told.append((point, ms)))
    wanted = [*prefill_points(LIMITS), *decode_points(LIMITS)]
    assert list(dict.fromkeys(probe.ran)) == wanted
    prefills = list(prefill_points(LIMITS))
    assert probe.ran[: 2 * len(prefills)] == prefills * 2  # round by round
    first = next(prefill_points(LIMITS))
    assert probe.ran.count(first) == 1 + 3
    assert sum(step.new_tokens == first.prompt_tokens and not step.sequences for step in steps) >= 3
    assert [point for point, _ in told] == wanted


async def test_it_goes_no_further_where_steps_take_too_long() -> None:
    probe = Pretended()
    await sweep(probe, LIMITS, Effort(1, 100.0), "steps", lambda *_: None)
    prefills = [point.prompts * point.prompt_tokens for point in probe.ran if point.output_tokens == 1]
    assert max(prefills) == 128  # the first above 100 ms
    probe = Pretended()
    await sweep(probe, LIMITS, Effort(1, 1.0), "steps", lambda *_: None)
    assert max(point.prompts for point in probe.ran if point.output_tokens > 1) == 1


async def test_what_fails_is_raised() -> None:
    with pytest.raises(WorkerFailed, match="it broke"):
        await sweep(Pretended(bad=Point(1, 24, 1)), LIMITS, Effort(1, 1e9), "steps", lambda *_: None)


def test_prompts_share_nothing() -> None:
    prompts = Prompts(10, 5000, seed=1)
    first, second = prompts.prompt(64), prompts.prompt(64)
    assert first[:16] != second[:16]
    assert min(first) >= 10
    assert Prompts(10, 5000, seed=1).prompt(64) == first
