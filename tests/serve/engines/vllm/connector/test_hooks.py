"""The connector as vLLM calls it, in a process with the connector's folder on its path and nothing else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokenmill.serve.engines.vllm.launch import CONNECTOR_PATH

pytest.importorskip("torch")


def test_two_engines_hand_over_through_the_hooks() -> None:
    environment = {**os.environ, "PYTHONPATH": str(CONNECTOR_PATH)}
    program = Path(__file__).with_name("standin.py")
    done = subprocess.run(
        [sys.executable, program], env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    assert "the handoff of f failed: it was made by another KV connector" in done.stdout
