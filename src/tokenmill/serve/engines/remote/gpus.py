"""Which GPUs a launched engine sees: a share of those that this process sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokenmill.errors import ConfigError

VARIABLE = "CUDA_VISIBLE_DEVICES"
"""Read by CUDA, and by ROCm too."""


def visible_gpus(gpus: Sequence[int], environment: Mapping[str, str]) -> dict[str, str]:
    """Return what an engine's environment needs so that it sees ``gpus``, counted among those that this
    process sees; nothing where it may see them all. Raises ConfigError where one is not there.
    """
    if not gpus:
        return {}
    seen = environment.get(VARIABLE)
    if seen is None:
        return {VARIABLE: ",".join(map(str, gpus))}
    names = [name.strip() for name in seen.split(",") if name.strip() not in ("", "-1")]
    if not names:
        return {}  # an engine that runs without GPUs
    if max(gpus) >= len(names):
        raise ConfigError(
            f"gpus: GPU {max(gpus)} is asked for, and {VARIABLE}={seen} shows {len(names)}", param="gpus"
        )
    return {VARIABLE: ",".join(names[gpu] for gpu in gpus)}
