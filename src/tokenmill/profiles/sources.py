"""Puts the sources of step times together: measured profiles, then the database, then the roofline.

What was measured on the very device goes first; the roofline knows everything, and is last.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tokenmill.decide.perf.efficiencies import EFFICIENCIES
from tokenmill.decide.perf.estimates import FirstThatKnows, RooflineSource
from tokenmill.decide.perf.source import StepTimeSource
from tokenmill.profiles.database import DatabaseSource
from tokenmill.profiles.measured import MeasuredSource
from tokenmill.profiles.profile_file import load_profile
from tokenmill.profiles.table_cache import TableCache, cache_folder


def step_time_source(*, profiles: Sequence[Path] = (), database: bool = True) -> StepTimeSource:
    """Return the source that plans and simulations ask. Raises ConfigError for a profile that cannot be
    used."""
    sources: list[StepTimeSource] = []
    if profiles:
        sources.append(MeasuredSource([load_profile(path) for path in profiles]))
    if database:
        sources.append(DatabaseSource(TableCache(cache_folder(os.environ))))
    sources.append(RooflineSource(EFFICIENCIES))
    return FirstThatKnows(sources)
