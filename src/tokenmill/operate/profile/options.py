"""The flags of ``tokenmill profile``: those of a worker, whose engine is measured, and its own."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.spec.process import WorkerConfig


@dataclass(frozen=True, kw_only=True)
class ProfileOptions(WorkerConfig):
    """Measure an engine's step times: start one here as a worker would, or measure what answers at --url."""

    url: str = ""
    """Address of a running front door or engine (http://host:port) to measure from outside; without it an
    engine is started here."""

    out: str = "profile.json"
    """The profile file to write."""

    plot: str = ""
    """A picture (PNG) to write beside it; needs the extra plot."""

    gpu: str = ""
    """The GPU's name in the catalogue (h100-sxm, ...), where the machine does not tell it."""

    max_prefill: int = 8192
    """Most tokens of one prefill batch."""

    max_batch: int = 64
    """Most sequences of one decode batch."""

    max_context: int = 8192
    """Most tokens of one sequence."""

    repeats: int = 5
    """How often each batch is measured."""

    longest_step_ms: float = 4000.0
    """The sweep goes no further in a direction where a step takes longer, in milliseconds."""

    point_timeout_s: float = 300.0
    """How long one batch may take, in seconds."""
