"""How long a simulated device takes for a step.

Exists so that a plant can run on a published polynomial or on any ``StepTimeModel``. It must not know why the
step is what it is.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from tokenmill.decide.perf.step_time import StepTimeModel


class PlantTimes(Protocol):
    """The device behind one worker of a plant. A worker asks at the start of each step."""

    def step_ms(
        self, new_tokens: int, prefill_context: int, sequences: int, decode_context: int, kv_share: float
    ) -> float:
        """Return a step's time, milliseconds: the four sums of ``StepTimeModel.mixed_ms``. ``kv_share``:
        blocks that sequences hold, of all blocks."""
        ...

    def decodes_ms(self, sequences: int, decode_context: int, kv_share: float, steps: int) -> list[float]:
        """Return the times of ``steps`` steps in a row in which nothing but decoding happens: exactly what
        ``step_ms(0, 0, sequences, context, kv_share)`` says for each, the context growing by a token for
        each sequence from step to step."""
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

    def step_ms(
        self,
        new_tokens: int,
        prefill_context: int,  # noqa: ARG002 -- the polynomials know no context
        sequences: int,
        decode_context: int,  # noqa: ARG002
        kv_share: float,
    ) -> float:
        """See ``PlantTimes``."""
        step_ms = 0.0
        if new_tokens:
            constant, linear, square = self.prefill
            step_ms = constant + new_tokens * (linear + new_tokens * square)
        if sequences:
            constant, linear, square = self.decode
            step_ms += max(self.decode_least_ms, constant + kv_share * (linear + kv_share * square))
        return step_ms

    def decodes_ms(self, sequences: int, decode_context: int, kv_share: float, steps: int) -> list[float]:
        """See ``PlantTimes``: all take the same time."""
        return [self.step_ms(0, 0, sequences, decode_context, kv_share)] * steps


class ModelTimes:
    """A device whose steps take what a ``StepTimeModel`` says."""

    def __init__(self, model: StepTimeModel) -> None:
        self._model = model

    def step_ms(
        self,
        new_tokens: int,
        prefill_context: int,
        sequences: int,
        decode_context: int,
        kv_share: float,  # noqa: ARG002 -- the model goes by context
    ) -> float:
        """See ``PlantTimes``."""
        return self._model.mixed_ms(new_tokens, prefill_context, sequences, decode_context)

    def decodes_ms(
        self,
        sequences: int,
        decode_context: int,
        kv_share: float,  # noqa: ARG002
        steps: int,
    ) -> list[float]:
        """See ``PlantTimes``."""
        mixed_ms = self._model.mixed_ms
        end = decode_context + steps * sequences
        return [mixed_ms(0, 0, sequences, context) for context in range(decode_context, end, sequences)]
