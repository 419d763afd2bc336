"""Files of step times: there and back, and what is said of those that are none."""

import pytest
from tests.profiles.test_profile_file import PROFILE

from tokenmill.errors import ConfigError
from tokenmill.profiles.step_times_file import load_step_table, save_step_table


def test_there_and_back(tmp_path):
    path = tmp_path / "decode.steps.json"
    save_step_table(PROFILE.table, path)
    assert load_step_table(path) == PROFILE.table


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="tokenmill plan --write"):
        load_step_table(tmp_path / "none.json")


@pytest.mark.parametrize("content", [b"{}", b"\xff", b'{"tokens": [1, 2]}'])
def test_a_file_that_is_something_else(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="no step table"):
        load_step_table(path)


def test_a_folder_is_said(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_step_table(tmp_path)
    with pytest.raises(ConfigError, match="cannot be written"):
        save_step_table(PROFILE.table, tmp_path)
