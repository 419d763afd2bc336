"""Step times changed all alike: shorter by a factor (the ``sim`` engine's ``speedup``), or with a pause after
each step (what an engine's shell takes, which a profile tells)."""

from __future__ import annotations

from tokenmill.decide.fleet.links import Link
from tokenmill.decide.perf.step_time import StepTimeModel


class _OtherSteps:
    """What does not change with the steps: memory, and how fast links are."""

    def __init__(self, times: StepTimeModel) -> None:
        self._times = times

    @property
    def kv_bytes_per_token(self) -> float:
        """See ``StepTimeModel``."""
        return self._times.kv_bytes_per_token

    @property
    def kv_capacity_tokens(self) -> int:
        """See ``StepTimeModel``."""
        return self._times.kv_capacity_tokens

    def transfer_ms(self, tokens: float, link: Link | None = None) -> float:
        """See ``StepTimeModel``."""
        return self._times.transfer_ms(tokens, link)


class Faster(_OtherSteps):
    """A ``StepTimeModel`` whose steps take ``1 / speedup`` of another's; no time at all for 0."""

    def __init__(self, times: StepTimeModel, speedup: float) -> None:
        super().__init__(times)
        self._share = 1 / speedup if speedup else 0.0

    def prefill_ms(self, new_tokens: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self._share * self._times.prefill_ms(new_tokens, context_tokens)

    def decode_ms(self, sequences: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self._share * self._times.decode_ms(sequences, context_tokens)

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """See ``StepTimeModel``."""
        return self._share * self._times.mixed_ms(new_tokens, prefill_context, sequences, decode_context)


class Paused(_OtherSteps):
    """A ``StepTimeModel`` whose steps take ``pause_ms`` more than another's; no work takes no time."""

    def __init__(self, times: StepTimeModel, pause_ms: float) -> None:
        super().__init__(times)
        self._pause_ms = pause_ms

    def prefill_ms(self, new_tokens: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(new_tokens, context_tokens, 0, 0)

    def decode_ms(self, sequences: float, context_tokens: float) -> float:
        """See ``StepTimeModel``."""
        return self.mixed_ms(0, 0, sequences, context_tokens)

    def mixed_ms(
        self, new_tokens: float, prefill_context: float, sequences: float, decode_context: float
    ) -> float:
        """See ``StepTimeModel``."""
        if new_tokens <= 0 and sequences <= 0:
            return 0.0
        step_ms = self._times.mixed_ms(new_tokens, prefill_context, sequences, decode_context)
        return step_ms + self._pause_ms


def with_pause(times: StepTimeModel, pause_ms: float) -> StepTimeModel:
    """Return step times with a pause after each step; the same where there is none."""
    return Paused(times, pause_ms) if pause_ms else times
