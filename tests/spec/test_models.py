from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.spec import models


def test_a_folder_is_itself_and_gives_the_name(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    assert models.resolve_model(str(folder)) == folder
    assert models.model_name("", str(folder)) == "my-model"
    assert models.model_name("given", str(folder)) == "given"


def test_the_shipped_model_has_its_name():
    assert models.model_name("", "") == models.SHIPPED_NAME


def test_a_hub_id_is_found_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    repository = tmp_path / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc\n")
    with pytest.raises(ConfigError, match="hf download org/name"):
        models.resolve_model("org/name")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    assert models.resolve_model("org/name") == repository / "snapshots" / "abc"
    assert models.model_name("", "org/name") == "org/name"


def test_what_is_no_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        models.resolve_model(str(file))
    with pytest.raises(ConfigError, match="check the path"):
        models.resolve_model("/no/such/model")
