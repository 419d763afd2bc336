"""The stages of a tokenizer's pipeline, as its file writes them.

Exists because the library tells a stage's settings only in its pickled form, which is the file's JSON;
asking for the whole file would write the vocabulary too. It must not know what stages mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Stage = Mapping[str, Any]


def stage_of(part: Any) -> Stage | None:
    """Return one part of a pipeline (normalizer, pre-tokenizer, decoder ...) as JSON, None for none."""
    if part is None:
        return None
    stage: Stage = json.loads(part.__getstate__())
    return stage


def stages_of(stage: Stage | None) -> list[Stage]:
    """Return the stages of a part, those of sequences in sequences flattened."""
    if stage is None:
        return []
    if stage["type"] != "Sequence":
        return [stage]
    inner = next(value for name, value in stage.items() if name != "type")
    return [each for part in inner for each in stages_of(part)]
