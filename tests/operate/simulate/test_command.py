"""``tokenmill simulate`` as a user meets it: tables, JSON, pages, messages, exit statuses."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.operate.simulate.plants import ROOFLINE, SIM, write_factory

from tokenmill import cli

LOAD = "poisson:rate=20,prompt=600,output=20,seconds=10"

SCENARIO = """
apiVersion: tokenmill/v1
kind: Scenario
metadata: {name: rough}
trace: "poisson:rate=20,prompt=600,output=20,seconds=10"
seed: 3
start_s: 2
stages: {prefill: {dollars_per_hour: 2}, decode: {dollars_per_hour: 3}}
events:
  failures: [{at_s: 3, stage: decode, worker: 1, back_after_s: 1}]
  scaling: [{at_s: 5, stage: prefill, workers: 3}]
classes:
  - {name: gold, share: 0.25, priority: 5, slo: {ttft_ms: 1}, price: {input: 1, output: 4}}
  - {name: free, share: 0.75}
"""


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("TOKENMILL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sim(tmp_path) -> Path:
    return write_factory(tmp_path / "sim.yaml", SIM, "sim")


@pytest.fixture
def gpus(tmp_path) -> Path:
    return write_factory(tmp_path / "gpus.yaml", ROOFLINE, "gpus")


@pytest.fixture
def rough(tmp_path) -> Path:
    path = tmp_path / "rough.yaml"
    path.write_text(SCENARIO)
    return path


def run(capsys, *words):
    status = cli.main(["simulate", *map(str, words)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def told(capsys, *words):
    status, out, err = run(capsys, *words, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_table_that_people_read(capsys, gpus):
    status, out, err = run(capsys, gpus, "--trace", "poisson:rate=2,prompt=3000,output=50,seconds=20")
    assert (status, err) == (0, "")
    for words in (
        "first token (TTFT)",
        "between tokens (ITL)",
        "goodput, requests/s",
        "output tokens/s a GPU",
        "$ a million output tokens",
        "95% within 1000 ms to the first token and 40 ms",
        "2 h100-sxm",
        "roofline",
        "busy",
    ):
        assert words in out
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 80


def test_json_has_all_of_it(capsys, gpus):
    run_ = told(capsys, gpus, "--trace", "poisson:rate=2,prompt=3000,output=50,requests=30", "--seed", 4)
    assert run_["version"] == 1
    assert (run_["factory"], run_["seed"], run_["requests"], run_["served"]) == ("gpus", 4, 30, 30)
    for kind in ("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms"):
        spread = run_["latency"][kind]
        assert spread["p50"] <= spread["p90"] <= spread["p95"] <= spread["p99"] <= spread["most"]
    assert run_["latency"]["itl_ms"]["count"] == 30 * 49
    assert run_["level"]["slo"] == {"ttft_ms": 1000, "itl_ms": 40, "percentile": 95}
    assert run_["throughput"]["gpus"] == pytest.approx(8)
    assert run_["prompt_tokens"] == 90_000
    decode = run_["stages"][1]
    assert (decode["role"], decode["device"], decode["gpus_per_worker"]) == ("decode", "h100-sxm", 4)
    lengths = {len(values) for values in decode["series"].values()}
    assert len(lengths) == 1
    assert lengths.pop() > 10


def test_money_is_told_out_to_the_tokens(capsys, gpus):
    run_ = told(capsys, gpus, "--trace", "chats:rate=1,shared=2000,prompt=500,output=100,seconds=30")
    prices = run_["cost"]["per_million"]
    cached = run_["prefix_hit"] * run_["prompt_tokens"]
    assert cached > 0
    spent = (
        prices["input"] * (run_["prompt_tokens"] - cached)
        + prices["cached"] * cached
        + prices["output"] * run_["output_tokens"]
    )
    assert spent / 1e6 == pytest.approx(run_["cost"]["dollars"], rel=1e-6)
    assert run_["cost"]["dollars"] == pytest.approx(sum(stage["dollars"] for stage in run_["stages"]))
    assert run_["cost"]["dollars_per_hour"] == pytest.approx(8 * 6.16)


def test_a_seed_gives_the_same_run_and_another_one_another(capsys, sim):
    def of(seed):
        found = told(capsys, sim, "--trace", LOAD, "--seed", seed)
        del found["wall_s"]
        return found

    assert of(1) == of(1)
    assert of(1)["latency"] != of(2)["latency"]


def test_a_scenario_happens(capsys, sim, rough):
    run_ = told(capsys, sim, "--scenario", rough)
    assert (run_["scenario"], run_["seed"]) == ("rough", 3)
    words = " ".join(event["what"] for event in run_["events"])
    assert "decode-1" in words
    assert "prefill" in words
    free, gold = run_["classes"]
    assert (free["name"], gold["name"]) == ("free", "gold")
    assert free["requests"] + gold["requests"] == run_["requests"]
    assert gold["level"]["within"] == 0
    assert free["level"]["within"] > 0.9
    income = (gold["prompt_tokens"] - gold["cached_tokens"] + 4 * gold["output_tokens"]) / 1e6
    assert gold["income"] == pytest.approx(income)
    assert run_["cost"]["income"] == pytest.approx(income)
    assert free["income"] is None
    workers = run_["stages"][0]["series"]["workers"]
    assert (workers[0], workers[-1]) == (2, 3)


def test_a_scenario_is_shown_to_people(capsys, sim, rough):
    status, out, _ = run(capsys, sim, "--scenario", rough)
    assert status == 0
    for words in ("scene: rough", "classes", "gold", "income", "at 3.0 s: ", "prefill"):
        assert words in out


def test_the_command_line_goes_before_the_scenario(capsys, sim, rough):
    run_ = told(
        capsys, sim, "--scenario", rough, "--seed", 9, "--speedup", 2, "--limit", 50, "--ttft-ms", 0.5
    )
    assert (run_["seed"], run_["requests"]) == (9, 50)
    assert run_["level"]["slo"] == {"ttft_ms": 0.5, "itl_ms": 20, "percentile": 95}
    assert not run_["level"]["kept"]
    assert run_["offered_per_s"] == pytest.approx(40, rel=0.3)


def test_a_scenario_s_trace_is_seen_from_its_folder(capsys, sim, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "t.csv").write_text("time,input_tokens,output_tokens\n0,100,5\n1,100,5\n2,100,5\n")
    path = folder / "s.yaml"
    path.write_text("metadata: {name: s}\ntrace: t.csv\nstart_at_s: 1\n")
    assert told(capsys, sim, "--scenario", path)["requests"] == 2


def test_factories_stand_side_by_side(capsys, sim, tmp_path):
    both = "stages: [{name: worker, replicas: 4, engine: sim}]"
    other = write_factory(tmp_path / "both.yaml", both, "both")
    status, out, _ = run(
        capsys, "--compare", sim, other, "--trace", LOAD, "--report", "r.html", "--json-file", "r.json"
    )
    assert status == 0
    head = next(line for line in out.splitlines() if "both" in line and "level" not in line)
    assert head.split() == ["sim", "both"]
    runs = json.loads(Path("r.json").read_text())["runs"]
    assert [each["factory"] for each in runs] == ["sim", "both"]
    assert runs[0]["requests"] == runs[1]["requests"]
    assert runs[0]["level"]["slo"] == runs[1]["level"]["slo"]
    assert "change" in Path("r.html").read_text()
    again = told(capsys, sim, "--compare", other, "--trace", LOAD)
    assert [each["latency"] for each in again["runs"]] == [each["latency"] for each in runs]


def test_factories_of_one_name_are_told_apart_by_their_files(capsys, sim, tmp_path):
    other = write_factory(tmp_path / "other.yaml", SIM, "sim")
    runs = told(capsys, sim, "--compare", other, "--trace", LOAD)["runs"]
    assert [each["factory"] for each in runs] == ["sim (sim.yaml)", "sim (other.yaml)"]
    assert runs[0]["latency"] == runs[1]["latency"]


def test_requests_that_nobody_can_have_are_told(capsys, sim):
    status, out, _ = run(capsys, sim, "--trace", "even:rate=1,prompt=900000,output=1,requests=3")
    assert status == 1
    assert "refused: 3 (" in out
    assert "\nfirst token (TTFT)          -" in out


def test_recorded_traces_run(capsys, sim, tmp_path):
    lines = [
        json.dumps(
            {"timestamp": 100 * n, "input_length": 1024, "output_length": 4, "hash_ids": [0, n % 3 + 1]}
        )
        for n in range(30)
    ]
    Path("chat.jsonl").write_text("\n".join(lines))
    run_ = told(capsys, sim, "--trace", "chat.jsonl")
    assert run_["load"].startswith("chat.jsonl: 30 requests in 2.9 s")
    assert run_["prefix_hit"] > 0.5


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "trace: give one: a file, or a load such as poisson:"),
        (("--trace", "poisson:rate=5"), "poisson: seconds: say where it ends"),
        (("--trace", "poison:rate=5,seconds=5"), 'Did you mean "poisson"'),
        (("--trace", "none.jsonl"), "none.jsonl: no such file"),
        (("--trace", LOAD, "--speedup", "0"), "speedup: 0 is out of range"),
        (("--trace", LOAD, "--percentile", "101"), "percentile: 101 is out of range"),
        (("--trace", LOAD, "--limit", "-1"), "limit: -1; give 0 or more"),
        (("--trace", LOAD, "--gpu", "H1000"), '"H1000" is not in the catalogue'),
        (("--trace", LOAD, "--scenario", "none.yaml"), "no such file; name a scenario file"),
        (("--trace", LOAD, "--fleet", "none.yaml"), "no such file; name a fleet file"),
        (("--trace", LOAD, "--profile", "none.json"), "there is no file none.json"),
        (
            ("--trace", LOAD, "--report", "no/such/folder.html"),
            "report: no/such/folder.html cannot be written",
        ),
        (("--trace", LOAD, "--json-file", "no/such.json"), "json-file: no/such.json cannot be written"),
        (("--trace", LOAD, "--model", "x"), 'sim.yaml has no "x"'),
        (("--trace", LOAD, "--compare", "none.yaml"), "none.yaml: no such file"),
    ],
)
def test_bad_input_names_the_field_and_the_fix(capsys, sim, words, says):
    status, out, err = run(capsys, sim, *words)
    assert (status, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_a_factory_must_be_named(capsys):
    status, _, err = run(capsys, "--trace", LOAD)
    assert (status, "name a factory file" in err) == (2, True)


def test_a_factory_without_workers_is_refused(capsys, tmp_path):
    path = write_factory(tmp_path / "f.yaml", "stages: [{name: w, engine: sim, replicas: 0}]")
    status, _, err = run(capsys, path, "--trace", LOAD)
    assert status == 2
    assert "no stage has a worker" in err


def test_a_bar_on_a_terminal_leaves_the_output_alone(capsys, sim, monkeypatch):
    words = ["simulate", str(sim), "--trace", LOAD, "--json"]
    assert cli.main(words) == 0
    plain = json.loads(capsys.readouterr().out)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    told_ = json.loads(captured.out)
    assert told_["latency"] == plain["latency"]
    assert "requests" in captured.err


def test_thousands_of_tenants_are_not_all_named(capsys, sim):
    load = "even:rate=100,prompt=10,output=1,requests=400,tenants=100"
    classes = told(capsys, sim, "--trace", load)["classes"]
    assert len(classes) == 41
    assert sum(each["requests"] for each in classes) == 400
    assert "(others)" in {each["name"] for each in classes}


def test_the_report_s_schema_is_what_is_written(capsys, sim):
    run_ = told(capsys, sim, "--trace", LOAD)
    assert cli.main(["schema", "report"]) == 0
    schema = json.loads(capsys.readouterr().out)
    fields = schema["$defs"]["Summary"]["properties"]
    assert set(run_) == set(fields)
    stage = schema["$defs"]["StageSummary"]["properties"]
    assert set(run_["stages"][0]) == set(stage)


class _Strict(HTMLParser):
    """Notes tags that are not closed in order, and everything that could reach out of the page."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.reaching: list[str] = []
        self.counts: dict[str, int] = {}
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("link", "iframe", "object", "embed", "base", "img", "form"):
            self.reaching.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "srcset") or name.startswith("on"):
                self.reaching.append(f"{tag} {name}={value}")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_well_formed_and_reaches_for_nothing(capsys, sim, rough):
    status, out, _ = run(capsys, sim, "--scenario", rough, "--report", "r.html")
    assert status == 0
    assert "report: r.html" in out
    text = Path("r.html").read_text()
    assert text.startswith("<!DOCTYPE html>")
    page = _Strict()
    page.feed(text)
    page.close()
    assert (page.open, page.wrong, page.reaching) == ([], [], [])
    for word in ("http://", "https://", "url(", "@import", "fetch(", "XMLHttpRequest", "import("):
        assert word not in text
    assert "default-src 'none'" in text
    assert page.counts["svg"] >= 10
    assert page.counts["script"] == page.counts["style"] == 1
    seen = " ".join(page.text)
    for words in ("Time to first token", "Utilization", "KV cache held", "Workers", "gold", "rough", "Cost"):
        assert words in seen


def test_names_cannot_break_the_page(capsys, tmp_path, sim):
    name = "<script>alert(1)</script>&\"'.csv"
    Path(name.replace("/", "_")).write_text("time,input_tokens,output_tokens\n0,100,5\n1,100,5\n")
    status, _, _ = run(capsys, sim, "--trace", name.replace("/", "_"), "--report", "r.html")
    assert status == 0
    page = _Strict()
    page.feed(Path("r.html").read_text())
    assert page.counts["script"] == 1
    assert (page.open, page.wrong) == ([], [])


def test_a_plan_is_simulated_as_it_was_written(capsys, gpus):
    ask = ["--isl", "3000", "--osl", "150", "--itl-ms", "25", "--percentile", "90"]
    assert cli.main(["plan", str(gpus), *ask, "--write", "planned.yaml", "--json"]) == 0
    best = json.loads(capsys.readouterr().out)["plan"]["best"]
    rate = 0.7 * best["rate_per_s"]
    run_ = told(capsys, "planned.yaml", "--trace", f"poisson:rate={rate},prompt=3000,output=150,seconds=120")
    assert run_["level"]["slo"] == {"ttft_ms": 1000, "itl_ms": 25, "percentile": 90}
    assert run_["level"]["kept"]
    assert run_["cost"]["dollars_per_hour"] == pytest.approx(best["dollars_per_hour"])
    assert run_["latency"]["tpot_ms"]["mean"] == pytest.approx(best["itl_mean_ms"], rel=0.15)
    assert [stage["name"] for stage in run_["stages"]] == [stage["name"] for stage in best["stages"]]


@pytest.mark.parametrize(
    ("load", "status"),
    [("even:requests=1,prompt=10,output=1", 0), ("even:requests=2,prompt=900000,output=1", 1)],
)
def test_the_smallest_runs_have_a_page_too(capsys, gpus, load, status):
    assert run(capsys, gpus, "--trace", load, "--report", "r.html")[0] == status
    page = _Strict()
    page.feed(Path("r.html").read_text())
    assert (page.open, page.wrong) == ([], [])
    assert not any(word in Path("r.html").read_text() for word in ("nan", "inf ", "Infinity"))
