"""``tokenmill plan`` as a user meets it: tables, JSON, files, messages, exit statuses."""

import json
import textwrap

import pytest

from tokenmill import cli
from tokenmill.decide.fleet import milp
from tokenmill.profiles.step_times_file import load_step_table
from tokenmill.protocol.ids import Role
from tokenmill.spec.load import load_factory

FACTORY = """
apiVersion: tokenmill/v1
kind: Factory
metadata: {name: llama}
model: {name: llama, path: nvidia/Llama-3.1-70B-Instruct-FP8}
slo: {ttft_ms: 1000, itl_ms: 25, percentile: 90}
router: {policy: kv}
stages:
  - name: worker
    role: both
    replicas: 8
    engine: vllm
    gpu: H100
    block_tokens: 64
    engine_args: {seed: "1"}
"""

FLEET = """
apiVersion: tokenmill/v1
kind: Fleet
metadata: {name: two}
nodes:
  - {name: quick, gpu: H100, count: 1, dollars_per_gpu_hour: 4}
  - {name: cheap, gpu: A100-80GB-SXM, count: 2, dollars_per_gpu_hour: 1, availability: spot}
"""


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def factory(tmp_path):
    path = tmp_path / "factory.yaml"
    path.write_text(textwrap.dedent(FACTORY))
    return path


@pytest.fixture
def fleet(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text(textwrap.dedent(FLEET).replace("A100-80GB-SXM", "A100"))
    return path


def run(capsys, *words):
    status = cli.main(["plan", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_table_that_people_read(capsys, factory):
    status, out, err = run(capsys, factory, "--isl", 3000, "--osl", 150, "--rate", 4)
    assert (status, err) == (0, "")
    assert "4 requests/s of 3000 tokens in, 150 out" in out
    for words in ("TTFT p90, ms", "ITL p90, ms", "utilization", "$/h", "a million tokens:", "$/M out"):
        assert words in out
    assert "aggregated" in out
    assert "disaggregated" in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_json_says_the_same(capsys, factory):
    status, out, _ = run(
        capsys, factory, "--isl", 3000, "--osl", 150, "--rate", 4, "--cached", 1000, "--json"
    )
    assert status == 0
    told = json.loads(out)
    assert told["ask"]["cached_tokens"] == 1000
    best = told["plan"]["best"]
    assert best["rate_per_s"] == 4
    assert best["within"] >= 0.9
    assert {stage["gpu"] for stage in best["stages"]} == {"h100-sxm"}
    assert set(best["dollars_per_million"]) == {"input", "cached", "output"}
    assert all(each["why"] for each in told["plan"]["runners_up"])


def test_the_written_factory_is_one(capsys, factory, tmp_path):
    written = tmp_path / "planned.yaml"
    words = ("--isl", 3000, "--osl", 150, "--itl-ms", 30, "--write", written, "--json")
    status, out, _ = run(capsys, factory, *words)
    assert status == 0
    best = json.loads(out)["plan"]["best"]
    planned = load_factory(written)
    assert planned.slo.itl_ms == 30
    assert planned.metadata.name == "llama"
    assert [stage.name for stage in planned.stages] == [stage["name"] for stage in best["stages"]]
    for stage, told in zip(planned.stages, best["stages"], strict=True):
        assert stage.role is Role(told["role"])
        assert stage.replicas == told["replicas"]
        assert stage.parallel.tp == told["parallel"]["tp"]
        assert stage.gpu == told["gpu"]
        assert stage.max_sequences == told["max_sequences"]
        assert stage.engine_args == {"seed": "1"}
        assert stage.block_tokens == 64
        if stage.role is Role.PREFILL:
            assert stage.prefill_budget == told["chunk_tokens"] <= stage.token_budget


def test_what_was_written_is_planned_again(capsys, factory, tmp_path):
    written = tmp_path / "planned.yaml"
    ask = ("--isl", 3000, "--osl", 150, "--rate", 5)
    run(capsys, factory, *ask, "--write", written)
    status, out, _ = run(capsys, written, *ask, "--json")
    assert status == 0
    assert json.loads(out)["plan"]["best"]["rate_per_s"] == 5


@pytest.mark.skipif(not milp.available(), reason="needs the extra [plan]")
def test_unequal_decode_stages_are_written_with_their_step_times(capsys, factory, fleet, tmp_path):
    fleet.write_text(fleet.read_text().replace("dollars_per_gpu_hour: 4", "dollars_per_gpu_hour: 6.16"))
    fleet.write_text(fleet.read_text().replace("dollars_per_gpu_hour: 1", "dollars_per_gpu_hour: 2.7"))
    written = tmp_path / "planned.yaml"
    ask = ("--isl", 1000, "--osl", 500, "--itl-ms", 30, "--rate", 18, "--fleet", fleet, "--write", written)
    status, _, _ = run(capsys, factory, *ask)
    assert status == 0
    decoding = [stage for stage in load_factory(written).stages if stage.role is not Role.PREFILL]
    assert len({stage.gpu for stage in decoding}) == 2
    tables = [load_step_table(tmp_path / stage.step_times) for stage in decoding]
    assert tables[0] != tables[1]


@pytest.mark.skipif(not milp.available(), reason="needs the extra [plan]")
def test_a_fleet_file_brings_types_and_prices(capsys, factory, fleet):
    ask = ("--isl", 3000, "--osl", 150, "--rate", 6, "--fleet", fleet, "--json")
    status, out, _ = run(capsys, factory, *ask)
    assert status == 0
    best = json.loads(out)["plan"]["best"]
    prices = {"quick": 4, "cheap": 1}
    assert best["dollars_per_hour"] == pytest.approx(
        sum(stage["gpus"] * prices[stage["group"]] for stage in best["stages"])
    )
    _, out, _ = run(capsys, factory, *ask, "--no-spot")
    without = json.loads(out)["plan"]["best"]
    assert {stage["group"] for stage in without["stages"]} == {"quick"}
    assert without["dollars_per_hour"] >= best["dollars_per_hour"]


def test_a_trace_says_lengths_and_rate(capsys, factory, tmp_path):
    trace = tmp_path / "trace.jsonl"
    lines = [
        {"timestamp": i * 400, "input_length": 1024 + 512 * (i % 3), "output_length": 80, "hash_ids": ids}
        for i in range(300)
        for ids in [[1, *(1000 + i * 4 + j for j in range(1 + i % 3))]]
    ]
    trace.write_text("\n".join(map(json.dumps, lines)))
    status, out, _ = run(capsys, factory, "--trace", trace, "--json")
    assert status == 0
    told = json.loads(out)
    assert told["ask"]["rate_per_s"] == pytest.approx(2.5, rel=0.05)
    assert told["ask"]["cached_tokens"] == pytest.approx(512, rel=0.05)
    assert told["plan"]["best"]["rate_per_s"] == told["ask"]["rate_per_s"]
    _, out, _ = run(capsys, factory, "--trace", trace, "--rate", 1, "--json")
    assert json.loads(out)["ask"]["rate_per_s"] == 1


def test_what_cannot_be_is_explained_and_ends_with_1(capsys, factory, tmp_path):
    written = tmp_path / "never.yaml"
    words = ("--isl", 3000, "--osl", 150, "--ttft-ms", 20, "--write", written)
    status, out, _ = run(capsys, factory, *words)
    assert status == 1
    assert "this cannot be met" in out
    assert "in the way: ttft_ms: 20 ms is too short" in out
    assert "would do:" in out
    assert not written.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--isl", 3000), "isl, osl: give tokens"),
        (("--isl", 10, "--osl", 10, "--rate", 0), "rate: 0"),
        (("--isl", 10, "--osl", 10, "--cached", 10), "cached: 10 of 10"),
        (("--isl", 10, "--osl", 10, "--percentile", 101), "percentile: 101"),
        (("--isl", 10, "--osl", 10, "--trace", "t.jsonl"), "trace: it says the lengths itself"),
        (("--isl", 10, "--osl", 10, "--fleet", "none.yaml"), "no such file"),
        (("--isl", 10, "--osl", 10, "--model", "gpt"), 'model: the factory has no "gpt"'),
        (("--isl", 10, "--osl", 10, "--objective", "fun"), "objective"),
    ],
)
def test_bad_usage_names_the_field_and_ends_with_2(capsys, factory, words, message):
    status, _, err = run(capsys, factory, *words)
    assert status == 2
    assert message in err.lower() or message in err


def test_a_factory_that_names_no_gpu_needs_a_fleet(capsys, factory):
    factory.write_text(factory.read_text().replace("    gpu: H100\n", ""))
    status, _, err = run(capsys, factory, "--isl", 10, "--osl", 10)
    assert status == 2
    assert "fleet: give a fleet file" in err


def test_without_a_fleet_the_plan_is_for_the_gpus_that_the_stages_have(capsys, factory):
    factory.write_text(factory.read_text().replace("replicas: 8", "replicas: 3\n    parallel: {tp: 4}"))
    _, out, _ = run(capsys, factory, "--isl", 3000, "--osl", 150, "--rate", 1)
    assert "fleet: 8 h100-sxm, 4 h100-sxm;" in out


def test_an_embedded_engine_gives_way_where_a_replica_has_several_gpus(capsys, factory, tmp_path):
    factory.write_text(factory.read_text().replace("engine: vllm", "engine: torch").replace("seed", "note"))
    written = tmp_path / "planned.yaml"
    status, _, _ = run(capsys, factory, "--isl", 3000, "--osl", 150, "--rate", 2, "--write", written)
    assert status == 0
    assert {stage.engine for stage in load_factory(written).stages} == {"vllm"}
