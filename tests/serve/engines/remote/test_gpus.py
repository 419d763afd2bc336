"""Which GPUs a launched engine sees."""

from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.engines.remote.gpus import visible_gpus

NAME = "CUDA_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    ("gpus", "seen", "told"),
    [
        ([], None, None),
        ([], "0,1", None),
        ([2, 3], None, "2,3"),
        ([0, 1], "4,5,6", "4,5"),
        ([1], "GPU-aa, GPU-bb", "GPU-bb"),
        ([0], "", None),
        ([0], "-1", None),
    ],
)
def test_gpus_are_counted_among_those_that_we_see(gpus, seen, told):
    environment = {} if seen is None else {NAME: seen}
    assert visible_gpus(gpus, environment) == ({} if told is None else {NAME: told})


def test_one_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="GPU 2 is asked for, and CUDA_VISIBLE_DEVICES=4,5 shows 2"):
        visible_gpus([1, 2], {NAME: "4,5"})
