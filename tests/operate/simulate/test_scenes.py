"""From a factory file to what is simulated: limits, times, hosts, links and events."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.operate.simulate.plants import LLAMA, ROOFLINE, SIM, staged_plant
from tests.profiles.test_profile_file import PROFILE, a_profile

from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.errors import ConfigError
from tokenmill.operate.simulate.places import MEMORY_LINK
from tokenmill.profiles.fleets import load_inventory
from tokenmill.profiles.profile_file import save_profile
from tokenmill.profiles.step_times_file import save_step_table
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import ExecutorFacts
from tokenmill.serve.engines.opening import batching_config
from tokenmill.simulate.scene import LinkSlow, StageScaled, WorkerFails, WorkerSlow
from tokenmill.spec.factory import Slo
from tokenmill.spec.load_scenario import parse_scenario
from tokenmill.spec.process import WorkerConfig
from tokenmill.spec.scenario import Scenario


def scenario(text: str, **stages: int) -> Scenario:
    return parse_scenario(
        f"metadata: {{name: s}}\n{text}", "s", stages=stages, is_known=lambda _: True, known=[]
    )


def test_the_sim_engine_runs_under_the_limits_that_its_worker_would_choose(tmp_path: Path) -> None:
    plant = staged_plant(tmp_path, SIM)
    config = WorkerConfig(engine="sim", role=Role.PREFILL)
    facts = ExecutorFacts(
        model="",
        vocab_size=0,
        max_model_len=plant.scene.stages[0].batching.max_model_len,
        kv_blocks=65_536,
        block_tokens=16,
        eos_token_ids=[],
        fingerprint="",
        prefill_budget=LinearStepTime().saturating_tokens(),
    )
    assert plant.scene.stages[0].batching == batching_config(config, facts)
    prefill, decode = plant.scene.stages
    assert (prefill.role, decode.role) == (Role.PREFILL, Role.DECODE)
    assert (prefill.workers, decode.workers) == (2, 2)
    assert prefill.kv_bytes_per_token == 4
    assert plant.scene.early_handoff
    assert plant.scene.same_host == MEMORY_LINK
    assert {stage.host_of(0) for stage in plant.scene.stages} == {"host"}
    assert plant.slo == Slo(ttft_ms=200, itl_ms=20)


def test_the_sim_engine_takes_the_time_that_it_was_told_to_take(tmp_path: Path) -> None:
    body = """
    stages:
      - {name: w, engine: sim, engine_args: {fixed_ms: 30, speedup: 3, jitter: 0.1, decode_sequence_ms: 0}}
      - {name: fast, engine: sim, engine_args: {speedup: 0}}
    """
    plant = staged_plant(tmp_path, body)
    times, fast = (plant.devices[name].times for name in ("w", "fast"))
    assert times.decode_ms(4, 0) == pytest.approx(10)
    assert times.mixed_ms(0, 0, 4, 0) == pytest.approx(10)
    assert fast.mixed_ms(1000, 500_000, 10, 10_000) == 0
    assert plant.notes == ["w: its jitter is left out"]


def test_a_server_gets_its_memory_from_the_gpu_and_its_budget_from_the_file(tmp_path: Path) -> None:
    body = f"""
    model: {{name: llama, path: {LLAMA}}}
    stages:
      - name: w
        engine: vllm
        gpu: H100
        parallel: {{tp: 4}}
        max_sequences: 100
        max_model_len: 16384
        token_budget: 4096
        engine_args: {{kv_cache_dtype: fp8, gpu_memory_utilization: "0.8"}}
      - {{name: x, engine: vllm, gpu: H100, parallel: {{tp: 4}}, engine_args: {{kv_cache_dtype: fp8}}}}
      - {{name: y, engine: sglang, gpu: H100, parallel: {{tp: 4}}, kv_blocks: 500}}
      - {{name: z, engine: trtllm, gpu: L40S, parallel: {{tp: 8}}, prefill_budget: 600}}
    """
    plant = staged_plant(tmp_path, body)
    w, x, y, z = (stage.batching for stage in plant.scene.stages)
    assert (w.max_sequences, w.max_model_len, w.token_budget, w.prefill_budget) == (100, 16384, 4096, None)
    assert w.block_tokens == 16
    assert w.total_blocks < x.total_blocks
    assert x.token_budget == 8192
    assert y.total_blocks == 500
    assert y.max_model_len == 8000
    assert (z.block_tokens, z.token_budget, z.prefill_budget) == (32, 2048, 600)
    assert plant.devices["w"].memory.bytes_per_token == 163840
    assert plant.devices["w"].gpus == 4
    assert plant.devices["w"].dollars_per_hour == pytest.approx(4 * 6.16)
    assert {each.origin for each in plant.devices.values()} == {"roofline"}
    assert not plant.scene.stages[0].hosts[0].startswith("host")


def test_workers_tell_the_step_times_that_their_processes_would(tmp_path: Path) -> None:
    save_step_table(PROFILE.table, tmp_path / "w.steps.json")
    body = f"""
    model: {{name: llama, path: {LLAMA}}}
    slo: {{itl_ms: 35}}
    router: {{local_share: 0.2}}
    stages:
      - {{name: w, engine: vllm, gpu: H100, parallel: {{tp: 4}}, step_times: w.steps.json}}
      - {{name: x, engine: vllm, gpu: H100, parallel: {{tp: 4}}}}
    """
    scene = staged_plant(tmp_path, body).scene
    assert [stage.step_table for stage in scene.stages] == [PROFILE.table, None]
    assert (scene.router.itl_ms, scene.router.local_share) == (35, 0.2)


def test_data_parallel_ranks_are_one_worker_with_the_room_of_all(tmp_path: Path) -> None:
    body = """
    model: {name: m, path: Qwen/Qwen3-30B-A3B}
    stages:
      - {name: one, engine: vllm, gpu: H100}
      - {name: four, engine: vllm, gpu: H100, parallel: {dp: 4, ep: 4}}
    """
    one, four = (stage.batching for stage in staged_plant(tmp_path, body).scene.stages)
    assert (four.max_sequences, four.token_budget) == (4 * one.max_sequences, 4 * one.token_budget)
    assert four.total_blocks > 4 * one.total_blocks


def test_a_model_that_does_not_fit_says_how_much_is_lacking(tmp_path: Path) -> None:
    body = f"""
    model: {{name: llama, path: {LLAMA}}}
    stages: [{{name: w, engine: vllm, gpu: L40S}}]
    """
    with pytest.raises(
        ConfigError, match=r"stage w: weights .* need \d+ GiB more on each l40s; raise parallel"
    ):
        staged_plant(tmp_path, body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            "stages: [{name: w}]",
            "stage w: nothing is known of its step times.*tokenmill profile --engine torch",
        ),
        ("stages: [{name: w, engine: vllm}]", r"stage w: .*name its GPU \(gpu: H100, or --gpu\), or give"),
        ("stages: [{name: w, engine: vllm, gpu: H1000}]", 'gpu: "H1000" is not in the catalogue'),
        ("model: {name: a, path: no/such}\nstages: [{name: w, engine: vllm, gpu: H100}]", "'no/such'"),
        (
            ROOFLINE.replace("tp: 2", "tp: 2}, engine_args: {gpu_memory_utilization: 7"),
            "give a share from 0 to 1",
        ),
        (
            "models: [{name: a}, {name: b}]\nstages: [{name: w, model: a}, {name: x, model: b}]",
            "model: name one of a, b",
        ),
    ],
)
def test_what_is_not_known_is_asked_for(tmp_path: Path, body: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        staged_plant(tmp_path, body)


def test_one_of_several_models_is_simulated(tmp_path: Path) -> None:
    body = """
    models: [{name: a}, {name: b}]
    stages: [{name: w, engine: sim, model: a}, {name: x, engine: sim, model: b}]
    """
    plant = staged_plant(tmp_path, body, model="b")
    assert [stage.name for stage in plant.scene.stages] == ["x"]
    with pytest.raises(ConfigError, match='has no "c"; it has a, b'):
        staged_plant(tmp_path, body, model="c")


def test_a_profile_gives_times_knee_and_room(tmp_path: Path) -> None:
    save_profile(a_profile(engine="torch", gpu="", model="tokenmill-mini"), tmp_path / "p.json")
    body = "stages: [{name: p, role: prefill, profile: p.json}, {name: d, role: decode, profile: p.json}]"
    plant = staged_plant(tmp_path, body)
    prefill, decode = plant.scene.stages
    assert prefill.batching.prefill_budget == PROFILE.knee.tokens
    assert decode.batching.prefill_budget == min(512, PROFILE.knee.tokens)
    assert prefill.batching.total_blocks == 400_000 // 16
    assert prefill.kv_bytes_per_token == 131072
    device = plant.devices["p"]
    assert (device.origin, device.expected_error) == ("measured", PROFILE.fit.mean_error)
    assert device.times.prefill_ms(1000, 500_500) == pytest.approx(
        LinearStepTime().prefill_ms(1000, 500_500), rel=0.1
    )


def test_a_profile_that_was_given_for_all_serves_the_stages_of_its_engine(tmp_path: Path) -> None:
    profile = a_profile(engine="torch", gpu="", model="tokenmill-mini")
    plant = staged_plant(tmp_path, "stages: [{name: w, kv_blocks: 99}]", profiles=[profile])
    assert plant.devices["w"].origin == "measured"
    assert plant.scene.stages[0].batching.total_blocks == 99


def test_a_profile_without_room_asks_for_it(tmp_path: Path) -> None:
    table = PROFILE.table
    profile = a_profile(
        engine="torch",
        model="tokenmill-mini",
        table=type(table)(
            **{
                name: getattr(table, name) for name in table.__struct_fields__ if name != "kv_capacity_tokens"
            },
            kv_capacity_tokens=0,
        ),
    )
    with pytest.raises(ConfigError, match="stage w: its KV memory is not known; write kv_blocks"):
        staged_plant(tmp_path, "stages: [{name: w}]", profiles=[profile])


def test_a_gpu_may_be_given_for_stages_that_name_none(tmp_path: Path) -> None:
    body = (
        "model: {name: q, path: Qwen/Qwen3-0.6B}\nstages: [{name: w, engine: vllm}, {name: s, engine: sim}]"
    )
    plant = staged_plant(tmp_path, body, gpu="L4")
    assert [stage.device for stage in plant.scene.stages] == ["l4", "sim"]


def test_replicas_fill_servers_one_after_the_other(tmp_path: Path) -> None:
    body = f"""
    model: {{name: llama, path: {LLAMA}}}
    stages:
      - {{name: prefill, role: prefill, replicas: 3, engine: vllm, gpu: H100, parallel: {{tp: 2}}}}
      - {{name: decode, role: decode, replicas: 2, engine: vllm, gpu: H100, parallel: {{tp: 4}}}}
    """
    prefill, decode = staged_plant(tmp_path, body).scene.stages
    assert prefill.hosts == ("h100-sxm-0",) * 3
    assert decode.hosts == ("h100-sxm-1",) * 2


def test_links_are_those_of_the_gpus(tmp_path: Path) -> None:
    scene = staged_plant(tmp_path, ROOFLINE).scene
    assert scene.links.bytes_per_s == pytest.approx(2 * 50e9 * 0.8)
    assert scene.same_host.bytes_per_s == pytest.approx(2 * 450e9 * 0.8)
    assert not scene.early_handoff
    changed = scenario("links: {between_hosts: {gb_per_s: 1, latency_ms: 5}, same_host: {gb_per_s: 2}}")
    scene = staged_plant(tmp_path, ROOFLINE, scenario=changed).scene
    assert (scene.links.bytes_per_s, scene.links.latency_s) == (1e9, 0.005)
    assert scene.same_host.bytes_per_s == 2e9


FLEET = """
apiVersion: tokenmill/v1
kind: Fleet
metadata: {name: two}
nodes:
  - {name: dear, gpu: H100, count: 1, dollars_per_gpu_hour: 9}
  - {name: cheap, gpu: H100, count: 1, gpus: 4, dollars_per_gpu_hour: 2}
"""


def test_a_fleet_gives_prices_and_says_when_it_is_too_small(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(FLEET)
    inventory = load_inventory(tmp_path / "fleet.yaml")
    plant = staged_plant(tmp_path, ROOFLINE, inventory=inventory)
    assert plant.devices["prefill"].dollars_per_hour == 2 * 2
    assert plant.devices["decode"].dollars_per_hour == 4 * 9
    assert plant.notes == []
    larger = ROOFLINE.replace("replicas: 2", "replicas: 9")
    assert any(
        "the fleet has 12 h100-sxm" in note
        for note in staged_plant(tmp_path, larger, inventory=inventory).notes
    )


def test_prices_of_the_scenario_go_first(tmp_path: Path) -> None:
    changed = scenario("prices: {h100: 1.5}\nstages: {decode: {dollars_per_hour: 3}}", prefill=2, decode=1)
    devices = staged_plant(tmp_path, ROOFLINE, scenario=changed).devices
    assert devices["prefill"].dollars_per_hour == 3.0
    assert devices["decode"].dollars_per_hour == 3.0


def test_the_scenario_s_events_are_the_scene_s(tmp_path: Path) -> None:
    text = """
start_s: 9
stages: {decode: {start_s: 2, hosts: [a, b]}}
events:
  failures: [{at_s: 1, stage: decode, back_after_s: 3}, {at_s: 2, stage: other}]
  stragglers: [{at_s: 1, until_s: 2, stage: prefill, worker: 1, factor: 4}]
  scaling: [{at_s: 5, stage: decode, workers: 2}]
  slow_links: [{at_s: 1, until_s: 2, host: a}, {at_s: 1, until_s: 3, factor: 9}]
"""
    plant = staged_plant(tmp_path, SIM, scenario=scenario(text, prefill=2, decode=2, other=1), seed=5)
    scene = plant.scene
    assert plant.notes == ["the scenario's stage other is not in this factory"]
    assert scene.events == [
        WorkerFails(at_s=1, stage="decode", index=0, back_after_s=3),
        WorkerSlow(at_s=1, until_s=2, stage="prefill", index=1, factor=4),
        StageScaled(at_s=5, stage="decode", workers=2),
        LinkSlow(at_s=1, until_s=2, host="a", factor=2),
        LinkSlow(at_s=1, until_s=3, host=None, factor=9),
    ]
    assert [stage.start_s for stage in scene.stages] == [9, 2]
    assert scene.stages[1].hosts == ("a", "b")
    assert scene.seed == 5


def test_router_admission_and_migration_are_the_factory_s(tmp_path: Path) -> None:
    body = f"""
    router: {{policy: round-robin, prefill: remote, weights: {{queue: 2}}}}
    admission: {{max_queued: 7, tenant_weights: {{a: 3}}}}
    migration: {{max_attempts: 2}}
    {SIM.replace(chr(10), chr(10) + "    ")}
    """
    scene = staged_plant(tmp_path, body).scene
    assert (scene.router.policy, scene.router.prefill, scene.router.weights.queue) == (
        "round-robin",
        "remote",
        2,
    )
    assert scene.admission is not None
    assert (scene.admission.max_queued, scene.admission.tenant_weights) == (7, {"a": 3})
    assert scene.most_attempts == 2


def test_a_level_given_by_hand_goes_first(tmp_path: Path) -> None:
    level = Slo(ttft_ms=1, itl_ms=2)
    of_scenario = scenario("slo: {ttft_ms: 7}")
    assert staged_plant(tmp_path, SIM, scenario=of_scenario).slo.ttft_ms == 7
    assert staged_plant(tmp_path, SIM, scenario=of_scenario, slo=level).slo == level


def test_the_scenario_s_front_and_messages_are_the_scene_s(tmp_path: Path) -> None:
    scene = staged_plant(tmp_path, SIM, scenario=scenario("front_ms: 3\nmessage_delay_ms: 0.5")).scene
    assert (scene.front_s, scene.message_delay_s) == (0.003, 0.0005)
    assert staged_plant(tmp_path, SIM).scene.front_s == 0


@pytest.mark.parametrize("engine", ["torch", "sim"])
def test_what_passes_between_steps_is_added_to_each(tmp_path: Path, engine: str) -> None:
    known = msgspec.structs.replace(a_profile(), engine=engine)
    body = f"stages:\n  - {{name: w, engine: {engine}, kv_blocks: 64, profile: {tmp_path}/p.json}}\n"
    save_profile(known, tmp_path / "p.json")
    plain = staged_plant(tmp_path, body).scene.stages[0].times
    save_profile(msgspec.structs.replace(known, between_steps_ms=0.5), tmp_path / "p.json")
    times = staged_plant(tmp_path, body).scene.stages[0].times
    for work in ((64, 2080, 0, 0), (0, 0, 3, 500), (64, 2080, 3, 500)):
        assert times.step_ms(*work, 0.0) == pytest.approx(plain.step_ms(*work, 0.0) + 0.5)
    assert times.decodes_ms(2, 100, 0.0, 3) == pytest.approx(
        [ms + 0.5 for ms in plain.decodes_ms(2, 100, 0.0, 3)]
    )
