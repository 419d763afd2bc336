"""Rotary position embedding: which variants we compute ourselves, and their frequencies.

Source of the llama3 formula: the Llama 3.1 release (smoothed scaling between two wavelengths).
"""

from __future__ import annotations

import math

import torch

from tokenmill.serve.engines.torch.checkpoint import ConfigValue, TextConfig

KINDS = ("default", "linear", "llama3")


def rope_parameters(config: TextConfig) -> dict[str, ConfigValue]:
    """Return the parameters, whether written in the newer form or as rope_theta and rope_scaling."""
    found: dict[str, ConfigValue] = {"rope_theta": config.get("rope_theta") or 10000.0}
    for key in ("rope_scaling", "rope_parameters"):
        given = config.get(key)
        if isinstance(given, dict):
            found |= given
    found["rope_type"] = found.get("rope_type") or found.get("type") or "default"
    return found


def covers(parameters: dict[str, ConfigValue]) -> bool:
    """Tell whether ``inverse_frequencies`` knows this variant."""
    return (
        parameters["rope_type"] in KINDS
        and parameters.get("partial_rotary_factor", 1.0) == 1.0
        and all(isinstance(v, str | int | float) or v is None for v in parameters.values())
    )


def inverse_frequencies(
    parameters: dict[str, ConfigValue], config: TextConfig, head_dim: int
) -> torch.Tensor:
    """Return float32 [head_dim / 2]: the angle in radians that one position adds to each pair."""

    def number(key: str, default: float) -> float:
        value = parameters.get(key)
        return float(value) if isinstance(value, int | float) else default

    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / (number("rope_theta", 10000.0) ** exponents)
    if parameters["rope_type"] == "default":
        return frequencies
    factor = number("factor", 1.0)
    if parameters["rope_type"] == "linear":
        return frequencies / factor
    low, high = number("low_freq_factor", 1.0), number("high_freq_factor", 4.0)
    trained = number("original_max_position_embeddings", config.number("max_position_embeddings", 8192.0))
    wavelengths = 2 * math.pi / frequencies
    smooth = (trained / wavelengths - low) / (high - low)
    blended = (1 - smooth) * frequencies / factor + smooth * frequencies
    scaled = torch.where(wavelengths > trained / low, frequencies / factor, blended)
    return torch.where(wavelengths < trained / high, frequencies, scaled)
