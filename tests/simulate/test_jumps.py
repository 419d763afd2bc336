"""Steps crossed in one jump give what they give one by one: the same floats, words and choices."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.simulate.scenes import LISTENERS, Listening, ListeningWithRoom, stage, state

from tokenmill.decide.batching.types import BatchingConfig
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.decide.router.admission_words import AdmissionSettings, BusyThresholds
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.protocol.ids import Role
from tokenmill.simulate import plant
from tokenmill.simulate.plant import simulate
from tokenmill.simulate.scene import (
    LinkScene,
    LinkSlow,
    Scene,
    SceneEvent,
    StageScaled,
    StageScene,
    WorkerFails,
    WorkerSlow,
)
from tokenmill.simulate.timing import ModelTimes, PlantTimes, PolynomialTimes
from tokenmill.simulate.traces import Trace, TracedRequest

ADMISSION = AdmissionSettings(
    busy=BusyThresholds(kv_share=0.6, prefill_s=0.2, prefill_tokens=60), max_queued=6, max_wait_s=0.4
)


@st.composite
def times(draw: st.DrawFn) -> PlantTimes:
    kind = draw(st.sampled_from(["round", "polynomial", "model"]))
    if kind == "round":  # many things happen at the very same instant
        return PolynomialTimes(prefill=(10.0, 0.0, 0.0), decode=(10.0, 0.0, 0.0))
    if kind == "polynomial":
        return PolynomialTimes(prefill=(6.0, 0.31, 1e-4), decode=(2.7, 9.0, -3.0))
    return ModelTimes(LinearStepTime(fixed_ms=3.0, prefill_token_ms=0.2, decode_context_ms=0.003))


@st.composite
def batchings(draw: st.DrawFn) -> BatchingConfig:
    return BatchingConfig(
        total_blocks=draw(st.sampled_from([10, 16, 40, 200])),
        max_model_len=160,
        block_tokens=draw(st.sampled_from([2, 4, 8])),
        token_budget=draw(st.sampled_from([8, 32, 64])),
        max_sequences=draw(st.integers(2, 8)),
        max_waiting=draw(st.sampled_from([3, 100])),
        prefix_cache=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.05])),
    )


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    requests = []
    at_s = 0.0
    for _ in range(draw(st.integers(1, 14))):
        at_s += draw(st.sampled_from([0.0, 0.01, 0.02, 0.0137, 0.3]))
        prompt = draw(st.integers(1, 60))
        shared = draw(st.integers(0, 3))
        ids = tuple(range(shared)) if draw(st.booleans()) else ()
        requests.append(TracedRequest(at_s, prompt, draw(st.integers(1, 70)), ids))
    return Trace(requests, prefix_block_tokens=8)


@st.composite
def events(draw: st.DrawFn, stages: list[StageScene]) -> list[SceneEvent]:
    found: list[SceneEvent] = []
    for _ in range(draw(st.integers(0, 3))):
        at_s = draw(st.sampled_from([0.0, 0.05, 0.1, 0.123, 0.4]))
        name = draw(st.sampled_from([each.name for each in stages]))
        until_s = at_s + draw(st.sampled_from([0.05, 0.5]))
        found.append(
            draw(
                st.sampled_from(
                    [
                        WorkerFails(at_s=at_s, stage=name, index=0, back_after_s=0.1),
                        WorkerFails(at_s=at_s, stage=name, index=1),
                        WorkerSlow(at_s=at_s, until_s=until_s, stage=name, index=0, factor=2.5),
                        StageScaled(at_s=at_s, stage=name, workers=3),
                        StageScaled(at_s=at_s, stage=name, workers=1),
                        LinkSlow(at_s=at_s, until_s=until_s, factor=3.0),
                    ]
                )
            )
        )
    return found


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    roles = draw(
        st.sampled_from(
            [[Role.BOTH], [Role.PREFILL, Role.DECODE], [Role.PREFILL, Role.DECODE, Role.BOTH], [Role.BOTH]]
        )
    )
    batching, device = draw(batchings()), draw(times())
    stages = [
        stage(
            role,
            draw(st.integers(1, 2)),
            batching,
            device,
            start_s=draw(st.sampled_from([0.0, 0.07])),
            kv_bytes_per_token=draw(st.sampled_from([0.0, 1000.0])),
        )
        for role in roles
    ]
    return Scene(
        stages=stages,
        links=LinkScene(bytes_per_s=1e6, latency_s=0.001),
        router=RouterSettings(policy=draw(st.sampled_from(["kv", "round-robin"]))),
        admission=draw(st.sampled_from([None, ADMISSION])),
        message_delay_s=draw(st.sampled_from([0.001, 0.01])),
        report_interval_s=draw(st.sampled_from([0.01, 0.05])),
        early_handoff=draw(st.booleans()),
        events=draw(events(stages)),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(scene=scenes(), trace=traces())
def test_jumps_change_nothing(scene: Scene, trace: Trace) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plant, "Router", Listening)
        patch.setattr(plant, "RouterWithRoom", ListeningWithRoom)
        LISTENERS.clear()
        by_jumps, by_steps = simulate(scene, trace), simulate(scene, trace, jump=False)
    assert state(by_jumps) == state(by_steps)
    jumping, stepping = LISTENERS
    if scene.admission is None:  # of loads that nobody looks at, those that tell of decodes only are left out
        rest = iter(stepping.heard)
        assert all(any(word == heard for heard in rest) for word in jumping.heard)
        assert [w for w in jumping.heard if w[0] != "load"] == [w for w in stepping.heard if w[0] != "load"]
    else:
        assert jumping.heard == stepping.heard
    assert all(record.outcome in {"served", "refused"} for record in by_jumps.requests)
    assert all(record.served or record.reason for record in by_jumps.requests)
