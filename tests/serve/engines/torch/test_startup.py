"""A worker with a checkpoint of the Llama family is up without paying for ``transformers``."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pathlib import Path
import tokenmill.serve.engines.torch
assert "torch" not in sys.modules
from tokenmill.serve.engines.torch.executor import TorchExecutor
from tokenmill.serve.engines.torch.settings import TorchSettings
executor = TorchExecutor(TorchSettings(model=Path(sys.argv[1]), device="cpu"))
print(executor.load().vocab_size, "transformers" in sys.modules)
executor.close()
"""


@pytest.mark.processes
def test_the_family_loads_without_transformers(models):
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(models.folder("mistral"))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.split() == ["262", "False"]
