"""Every fault of a checkpoint folder is one ConfigError that names the file."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.torch.checkpoint import Checkpoint
from tokenmill.serve.engines.torch.executor import TorchExecutor
from tokenmill.serve.engines.torch.settings import TorchSettings


@pytest.fixture(params=["qwen3", "gpt_oss"])
def folder(request, models, tmp_path) -> Path:
    return Path(shutil.copytree(models.folder(request.param), tmp_path / "copy"))


def load(folder: Path) -> None:
    executor = TorchExecutor(TorchSettings(model=folder, device="cpu", kv_blocks=200))
    try:
        executor.load()
    finally:
        executor.close()


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder: Path, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        load(folder)
    assert len(caught.value.message.splitlines()) <= 2


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def shard_with(folder: Path, part: str) -> tuple[Path, dict[str, torch.Tensor], str]:
    """A shard, its tensors, and the name of one of them that contains ``part``."""
    for path in shards(folder):
        tensors = load_file(path)
        for name in sorted(tensors):
            if part in name:
                return path, tensors, name
    raise AssertionError(part)


def test_an_unharmed_one_loads(folder):
    load(folder)


def test_no_config(folder):
    (folder / "config.json").unlink()
    refused(folder, r"config\.json: missing")


def test_config_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    refused(folder, r"config\.json: cannot be read")


def test_no_weights(folder):
    for path in [*shards(folder), *folder.glob("*.index.json")]:
        path.unlink()
    refused(folder, "only safetensors are read")


def test_a_truncated_file(folder):
    path = shards(folder)[-1]
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, f"{path.name}: not a whole safetensors file")


def test_a_file_of_something_else(folder):
    path = shards(folder)[0]
    path.write_bytes(b"<html>not found</html>")
    refused(folder, f"{path.name}: not a whole safetensors file")


def test_a_missing_tensor(folder):
    path, tensors, name = shard_with(folder, "v_proj.weight")
    del tensors[name]
    save_file(tensors, path, {"format": "pt"})
    refused(folder, name.replace(".", r"\."))


def test_a_tensor_of_another_shape(folder):
    path, tensors, name = shard_with(folder, "o_proj.weight")
    save_file({**tensors, name: torch.zeros(3, 3)}, path, {"format": "pt"})
    refused(folder, "shape")


def test_a_missing_shard(models, tmp_path):
    folder = Path(shutil.copytree(models.folder("qwen3"), tmp_path / "copy"))
    assert len(shards(folder)) > 1
    lost = shards(folder)[1]
    lost.unlink()
    refused(folder, f"{lost.name}: missing")


def test_an_unknown_architecture(folder):
    change_config(folder, architectures=["NovelForCausalLM"], model_type="novel")
    refused(folder, "NovelForCausalLM.*cannot be loaded")


def test_an_unknown_dtype(folder):
    change_config(folder, dtype="float8_e4m3fn")
    refused(folder, r"config\.json: dtype float8_e4m3fn is not supported")


def test_a_number_of_the_wrong_type(models, tmp_path):
    folder = Path(shutil.copytree(models.folder("llama"), tmp_path / "copy"))
    change_config(folder, num_hidden_layers="four")
    refused(folder, "num_hidden_layers must be a positive integer, not 'four'")


def test_half_precision_becomes_single_on_a_cpu(models, tmp_path):
    folder = Path(shutil.copytree(models.folder("llama"), tmp_path / "copy"))
    change_config(folder, dtype="float16")
    executor = TorchExecutor(TorchSettings(model=folder, device="cpu", kv_blocks=200))
    executor.load()
    assert executor.memory.layout.dtype == "float32"
    executor.close()


def test_the_fingerprint_sees_weights_and_configuration(folder):
    before = Checkpoint(folder).fingerprint("float32")
    assert Checkpoint(folder).fingerprint("float32") == before
    assert Checkpoint(folder).fingerprint("bfloat16") != before
    path = shards(folder)[0]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    changed = Checkpoint(folder).fingerprint("float32")
    assert changed != before
    change_config(folder, rms_norm_eps=1e-3)
    assert Checkpoint(folder).fingerprint("float32") != changed
