"""Shapes of models by folder, hub id and known name."""

import json
from pathlib import Path

import pytest

from tokenmill.errors import ConfigError
from tokenmill.profiles.known_models import CONFIGS
from tokenmill.profiles.models import load_shape
from tokenmill.spec.load import load_factory


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text(json.dumps(CONFIGS["Qwen/Qwen3-8B"]))
    return tmp_path


def test_a_folder_goes_by_its_config(folder: Path) -> None:
    assert load_shape(str(folder / "mine")).layers == 36
    assert load_shape("mine", beside=folder).layers == 36


def test_the_quantization_file_beside_it_counts(folder: Path) -> None:
    quantization = {"quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}
    (folder / "mine" / "hf_quant_config.json").write_text(json.dumps(quantization))
    shape = load_shape(str(folder / "mine"))
    assert (shape.dtype, shape.kv_dtype) == ("fp8", "fp8")


def test_the_shipped_model_has_a_shape() -> None:
    assert load_shape("").parameters > 0


@pytest.mark.parametrize("name", CONFIGS)
def test_known_models_need_no_files(name: str) -> None:
    shape = load_shape(name)
    assert shape.name == name
    assert shape.parameters > 5e8
    assert load_shape(name.lower()).layers == shape.layers


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda p: p.stem
)
def test_models_of_recipes_are_known(path: Path) -> None:
    assert load_factory(path).model.path in CONFIGS


def test_formats_of_a_compressed_checkpoint() -> None:
    shape = load_shape("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic")
    assert (shape.dtype, shape.attention_dtype, shape.kv_dtype) == ("fp8", "fp8", "bf16")


def test_an_unknown_name_gets_a_hint() -> None:
    with pytest.raises(ConfigError, match='Did you mean "Qwen/Qwen3-8B"'):
        load_shape("Qwen/Qwen3-8C")
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_shape("nobody/nothing-like-it")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_config_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / "mine" / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"mine/config\.json"):
        load_shape(str(folder / "mine"))
    (folder / "mine" / "config.json").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_shape(str(folder / "mine"))
