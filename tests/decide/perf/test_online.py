from __future__ import annotations

import random

import pytest

from tokenmill.decide.perf.online import OnlineStepTime, _features
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.protocol.metrics import StepMetrics

GPU = LinearStepTime()
CPU = LinearStepTime(
    fixed_ms=8, prefill_token_ms=1.5, prefill_context_ms=1e-4, decode_sequence_ms=3, decode_context_ms=1e-3
)
ROLES = ["prefill", "decode", "both"]


def work(random_, role):
    """Draw (new tokens, prefill context, sequences, decode context) of a step as that role sees it."""
    new = context = sequences = 0
    if role == "prefill" or (role == "both" and random_.random() < 0.3):
        new = min(512, max(1, int(random_.lognormvariate(5, 1))))
        context = new * random_.choice([0, 0, 512, 2048]) + new * (new + 1) // 2
    if role != "prefill":
        sequences = random_.randint(1, 40)
    return new, context, sequences, sequences * random_.randint(300, 2000)


def report(step, done, step_ms):
    new, context, sequences, read = done
    return StepMetrics(
        step=step,
        step_ms=step_ms,
        prefill_tokens=new,
        prefill_context_tokens=context,
        decode_tokens=sequences,
        decode_context_tokens=read,
    )


def learned(truth, role, count, *, noise=0.05, odd=0.0, seed=1, into=None, first=1):
    random_ = random.Random(seed)
    times = into or OnlineStepTime()
    for step in range(first, first + count):
        done = work(random_, role)
        step_ms = truth.mixed_ms(*done) * max(0.1, random_.gauss(1, noise))
        if random_.random() < odd:
            step_ms *= random_.choice([5, 30])
        assert times.observe(report(step, done, step_ms))
    return times


def errors(times, truth, role, seed=99):
    """Relative errors on steps of the same kind, unseen."""
    random_ = random.Random(seed)
    return sorted(
        abs(times.mixed_ms(*done) / truth.mixed_ms(*done) - 1)
        for done in (work(random_, role) for _ in range(200))
    )


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("truth", [GPU, CPU], ids=["gpu", "cpu"])
def test_steps_of_any_device_are_known_after_a_few_hundred(truth, role):
    off = errors(learned(truth, role, 400), truth, role)
    assert off[100] < 0.05
    assert off[180] < 0.15


@pytest.mark.parametrize("role", ROLES)
def test_outliers_do_not_mislead(role):
    off = errors(learned(GPU, role, 400, odd=0.05), GPU, role)
    assert off[100] < 0.06
    assert off[180] < 0.2


def test_one_report_sets_the_scale():
    times = learned(CPU, "prefill", 1, noise=0)
    guess = LinearStepTime()
    wrong_at_first = CPU.prefill_ms(512, 512 * 256) / guess.prefill_ms(512, 512 * 256)
    assert wrong_at_first > 20
    assert 0.3 < times.prefill_ms(512, 512 * 256) / CPU.prefill_ms(512, 512 * 256) < 3


def test_the_knee_is_found():
    """Below saturation a prefill costs what a decode does: the reason why short prompts are computed
    locally."""
    slow_start = LinearStepTime(fixed_ms=40, prefill_token_ms=0.2)
    times = learned(slow_start, "both", 400)
    assert times.mixed_ms(50, 50 * 25, 8, 8000) < 1.1 * times.decode_ms(8, 8000)
    assert times.mixed_ms(512, 512 * 256, 8, 8000) > 1.2 * times.decode_ms(8, 8000)


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_lasting_change_is_followed(factor):
    times = learned(GPU, "both", 400)
    changed = LinearStepTime(
        **{name: getattr(GPU, name) * factor for name in LinearStepTime.__struct_fields__}
    )
    learned(changed, "both", 100, into=times, first=1000, seed=2)
    assert errors(times, changed, "both")[100] < 0.1


def test_confidence_grows_where_steps_were_seen_and_not_elsewhere():
    times = OnlineStepTime()
    step = (512, 512 * 256, 0, 0)
    assert times.confidence(*step) == 0.0
    learned(GPU, "decode", 300, into=times)
    unseen = times.confidence(*step)
    assert times.confidence(0, 0, 16, 16_000) > 0.95 > 0.85 > unseen > 0
    learned(GPU, "prefill", 300, into=times, first=1000)
    assert times.confidence(*step) > 0.95


def test_a_step_is_counted_once_and_reports_without_a_step_not_at_all():
    times = OnlineStepTime()
    said = report(3, (100, 5050, 0, 0), 7.0)
    assert times.observe(said)
    assert not times.observe(said)
    assert not times.observe(StepMetrics())
    assert not times.observe(report(4, (0, 0, 0, 0), 7.0))
    assert not times.observe(report(5, (100, 5050, 0, 0), 0.0))
    assert times.samples == 1


def test_before_the_first_report_the_prior_speaks():
    times = OnlineStepTime(CPU)
    assert times.prefill_ms(1024, 0) == pytest.approx(CPU.prefill_ms(1024, 0))
    assert times.mixed_ms(20_000, 0, 0, 0) == pytest.approx(CPU.prefill_ms(20_000, 0), rel=0.01)


def test_predictions_are_never_negative_whatever_was_reported():
    random_ = random.Random(5)
    times = OnlineStepTime()
    for step in range(1, 600):
        times.observe(report(step, work(random_, "both"), random_.choice([0.01, 1.0, 1e6, float("inf")])))
    for role in ROLES:
        assert times.mixed_ms(*work(random_, role)) >= 0


@pytest.mark.parametrize("role", ROLES)
def test_what_is_asked_is_what_was_learned(role):
    """``mixed_ms`` spells out what the regression predicts."""
    times = learned(CPU, role, 50)
    random_ = random.Random(3)
    for done in [
        *(work(random_, role) for _ in range(50)),
        (0, 0, 0, 0),
        (16, 0, 0, 0),
        (10**5, 10**9, 0, 0),
    ]:
        assert times.mixed_ms(*done) == pytest.approx(times._regression.predict(_features(*done)))
