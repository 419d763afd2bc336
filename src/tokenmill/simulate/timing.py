"""How long a simulated device takes for a step.

Exists so that a plant can run on a published polynomial or on any ``StepTimeModel``. It must not know why the
step is what it is.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from tokenmill.decide.batching.types import StepPlan
from tokenmill.decide.perf.step_time import StepTimeModel


class PlantTimes(Protocol):
    """The device behind one worker of a plant."""

    def step_ms(self, plan: StepPlan, kv_share: float) -> float:
        """Return a step's time, milliseconds. ``kv_share``: blocks that sequences hold, of all blocks."""
        ...


class PolynomialTimes(msgspec.Struct, frozen=True, kw_only=True):
    """The timing polynomials that NVIDIA Dynamo's mock engine runs on, so that results can be compared.

    Prompts: ``a t**2 + b t + c`` over the step's new prompt tokens ``t``. Decodes: ``a p**2 + b p + c``, at
    least ``decode_least_ms``, over the share ``p`` of KV blocks that are held. A step that does both takes
    the sum. Coefficients in milliseconds, constant first.
    """

    prefill: tuple[float, float, float] = (16.50142, 1.518344e-02, 4.209989e-07)
    decode: tuple[float, float, float] = (5.74, 54.01, -25.74)
    decode_least_ms: float = 1.0

    def step_ms(self, plan: StepPlan, kv_share: float) -> float:
        """See ``PlantTimes``."""
        step_ms = 0.0
        if plan.prefill_tokens:
            constant, linear, square = self.prefill
            step_ms = constant + plan.prefill_tokens * (linear + plan.prefill_tokens * square)
        if plan.decode_tokens:
            constant, linear, square = self.decode
            step_ms += max(self.decode_least_ms, constant + kv_share * (linear + kv_share * square))
        return step_ms


class ModelTimes:
    """A device whose steps take what a ``StepTimeModel`` says."""

    def __init__(self, model: StepTimeModel) -> None:
        self._model = model

    def step_ms(self, plan: StepPlan, kv_share: float) -> float:  # noqa: ARG002 -- the model goes by context
        """See ``PlantTimes``."""
        decodes = plan.chunks[: plan.decode_tokens]
        context = 0
        for chunk in plan.chunks[plan.decode_tokens :]:
            context += chunk.length * chunk.start + chunk.length * (chunk.length + 1) // 2
        return self._model.mixed_ms(
            plan.prefill_tokens, context, len(decodes), sum(chunk.start + 1 for chunk in decodes)
        )
