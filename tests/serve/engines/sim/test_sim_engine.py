from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenmill.clock import SystemClock
from tokenmill.decide.perf.step_time import LinearStepTime
from tokenmill.errors import ConfigError
from tokenmill.protocol.ids import Role
from tokenmill.serve.engines.base import Engine
from tokenmill.serve.engines.opening import open_engine
from tokenmill.serve.engines.sim.vocabulary import read_vocabulary
from tokenmill.serve.transfer.drivers import open_transport
from tokenmill.spec.process import WorkerConfig
from tokenmill.testing.engine_client import EngineClient
from tokenmill.testing.engine_conformance import EngineConformance

VOCAB = 256


def write_tokenizer(folder: Path, vocab: object = None, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = {
        "model": {"type": "BPE", "vocab": vocab or {f"t{i}": i for i in range(VOCAB)}, "merges": []},
        "added_tokens": [{"id": 0, "content": "<s>"}, {"id": VOCAB, "content": "</s>"}],
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


class TestSimEngine(EngineConformance):
    vocab_size = VOCAB

    @pytest.fixture(autouse=True)
    def _model(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.model = write_tokenizer(tmp_path / "model")

    def make_engine(
        self, *, kv_blocks: int = 256, prefill_budget: int = 64, role: Role = Role.BOTH
    ) -> Engine:
        config = WorkerConfig(
            model=str(self.model),
            engine="sim",
            role=role,
            kv_blocks=kv_blocks,
            prefill_budget=prefill_budget,
            engine_args={"speedup": "200"},
        )
        transport = open_transport(["shm"], host="127.0.0.1", run_dir=self.tmp_path, clock=SystemClock())
        return open_engine(config, transport, SystemClock())

    async def test_says_only_ordinary_tokens(self) -> None:
        async with EngineClient(self.make_engine()) as client:
            tokens = await client.generate(self.prompt(9), max_tokens=300)
        assert 0 not in tokens
        assert VOCAB not in tokens
        assert len(set(tokens)) > 100

    async def test_waits_as_the_model_says(self) -> None:
        config = WorkerConfig(
            model=str(self.model), engine="sim", kv_blocks=64, engine_args={"fixed_ms": "30"}
        )
        async with EngineClient(open_engine(config, None, SystemClock())) as client:
            await client.generate(self.prompt(9), max_tokens=3)
        steps = [output.metrics.step_ms for output in client.outputs if output.metrics.step_ms]
        assert len(steps) == 3
        assert all(step_ms >= 30 for step_ms in steps)


@pytest.mark.parametrize(
    ("engine_args", "part"),
    [
        ({"speed": "2"}, "speed"),
        ({"speedup": "fast"}, "speedup"),
        ({"speedup": "-1"}, "positive"),
        ({"speedup": "nan"}, "finite"),
    ],
)
def test_bad_engine_args_are_named(tmp_path: Path, engine_args: dict[str, str], part: str) -> None:
    config = WorkerConfig(model=str(write_tokenizer(tmp_path)), engine="sim", engine_args=engine_args)
    with pytest.raises(ConfigError, match=part):
        open_engine(config, None, SystemClock())


def test_vocabulary_of_map_and_list_models(tmp_path: Path) -> None:
    bpe = read_vocabulary(write_tokenizer(tmp_path / "a", eos_token_id=3, max_position_embeddings=77))
    assert (bpe.size, bpe.eos_token_ids, bpe.max_model_len) == (VOCAB + 1, [3], 77)
    assert bpe.ordinary == list(range(1, VOCAB))
    unigram = read_vocabulary(
        write_tokenizer(tmp_path / "b", [["a", -1.0], ["b", -2.0]], eos_token_id=[1, 2])
    )
    assert unigram.ordinary == [1]
    assert unigram.eos_token_ids == [1, 2]


@pytest.mark.parametrize(
    "content", [None, "{", '{"model": {"vocab": {}}}', '{"model": {"vocab": {"a": "b"}}}']
)
def test_a_broken_tokenizer_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match="tokenizer"):
        read_vocabulary(tmp_path)


def test_linear_step_time() -> None:
    model = LinearStepTime(fixed_ms=4, prefill_token_ms=0.02, decode_sequence_ms=0.01)
    assert model.decode_ms(1, 0) == model.decode_ms(100, 0) == 4
    assert model.prefill_ms(400, 0) > model.prefill_ms(200, 0)
    assert model.saturating_tokens() == 200
    assert model.prefill_ms(200, 0) == pytest.approx(model.prefill_ms(1, 0))
    assert model.decode_ms(1, 10_000) > model.decode_ms(1, 10)
    assert model.mixed_ms(200, 0, 50, 0) == pytest.approx(4.5)
