"""Factories and surroundings for the tests of this room."""

from __future__ import annotations

import textwrap
from pathlib import Path

from tokenmill.operate.simulate.command import NO_SCENARIO
from tokenmill.operate.simulate.scenes import Staged, Surroundings, read_factory, staged
from tokenmill.profiles.sources import step_time_source

LLAMA = "nvidia/Llama-3.1-70B-Instruct-FP8"

SIM = """
slo: {ttft_ms: 200, itl_ms: 20}
stages:
  - {name: prefill, role: prefill, replicas: 2, engine: sim}
  - {name: decode, role: decode, replicas: 2, engine: sim}
"""

ROOFLINE = f"""
model: {{name: llama, path: {LLAMA}}}
slo: {{ttft_ms: 1000, itl_ms: 40}}
stages:
  - {{name: prefill, role: prefill, replicas: 2, engine: vllm, gpu: H100, parallel: {{tp: 2}}}}
  - {{name: decode, role: decode, replicas: 1, engine: vllm, gpu: H100, parallel: {{tp: 4}}}}
"""


def write_factory(path: Path, body: str, name: str = "plant") -> Path:
    path.write_text(
        f"apiVersion: tokenmill/v1\nkind: Factory\nmetadata: {{name: {name}}}\n{textwrap.dedent(body)}"
    )
    return path


def staged_plant(tmp_path: Path, body: str, *, model: str = "", **known: object) -> Staged:
    """A factory as it would be simulated; step times come from the roofline."""
    path = write_factory(tmp_path / "factory.yaml", body)
    surroundings = Surroundings(
        **{"scenario": NO_SCENARIO, "source": step_time_source(database=False), **known}
    )
    return staged(read_factory(path, model), surroundings)
