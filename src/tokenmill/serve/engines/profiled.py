"""What a measured profile decides for an engine's batch, where the user does not say.

Exists so that all engines take the point of saturation from the same file in the same way. It must not know
engines by name.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from tokenmill.decide.perf.profile import Profile
from tokenmill.profiles.profile_file import load_profile
from tokenmill.profiles.step_times_file import load_step_table
from tokenmill.protocol.ids import Role
from tokenmill.protocol.step_table import StepTable
from tokenmill.spec.mixes import EMBEDDED_ENGINES
from tokenmill.spec.process import WorkerConfig

DEFAULT_PREFILL_BUDGET: Final = 512
"""Prefill tokens in a step that also decodes: what a decode waits for at most."""


def profile_of(config: WorkerConfig) -> Profile | None:
    """Return the profile that the config names, if any. Raises ConfigError where it cannot be read."""
    return load_profile(Path(config.profile).expanduser()) if config.profile else None


def step_table_of(config: WorkerConfig) -> StepTable | None:
    """Return what the worker tells of its step times, if anything. Raises ConfigError where a file cannot be
    read."""
    if config.step_times:
        return load_step_table(Path(config.step_times).expanduser())
    profile = profile_of(config)
    return None if profile is None else profile.table


def with_profile(config: WorkerConfig) -> WorkerConfig:
    """Return the config with the profile's saturation point as prefill budget. Raises ConfigError.

    A prefill worker takes just what saturates the device; one that also decodes no more than that, nor than
    decodes can wait for. A launched engine has one budget for both kinds of tokens, so that it is told the
    point only where it does nothing but prefill; it must hold one token of each sequence.
    """
    profile = profile_of(config)
    if profile is None:
        return config
    saturating = profile.knee.tokens
    alone = config.role is Role.PREFILL
    prefill_budget = config.prefill_budget or (
        saturating if alone else min(saturating, DEFAULT_PREFILL_BUDGET)
    )
    token_budget = config.token_budget
    if alone and not token_budget and config.engine not in EMBEDDED_ENGINES:
        token_budget = max(prefill_budget, config.max_sequences)
    return replace(config, prefill_budget=prefill_budget, token_budget=token_budget)
