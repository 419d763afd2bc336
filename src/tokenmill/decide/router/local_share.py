"""A least share of prompts that are computed where they are decoded, as a plan counts on.

Exists because a plan lets decode workers compute prompts up to the service level, while the router by itself
sends a prompt away as soon as that is better for all streams together: prompts would then wait at the fewer
prefill workers that the plan bought. It must not know how ways are predicted.
"""

from __future__ import annotations

from typing import Final

GAIN: Final = 0.1
"""How far one decision moves the credit, in usual differences between two ways: a few tens of decisions take
it from one end to the other."""

MEMORY: Final = 0.95
"""What is kept of the usual difference from one decision to the next."""

MOST: Final = 10.0
"""No credit is more than so many usual differences, so that what cannot be had is not saved up for."""


class LocalShare:
    """Milliseconds of credit for local ways, learned so that at least ``least`` (0 to 1) of the choices are
    local: those for which it costs least (Robbins and Monro 1951: the credit settles at that share's quantile
    of the differences). Where more are local anyhow there is no credit."""

    def __init__(self, least: float) -> None:
        self.credit_ms = 0.0
        self._least = least
        self._usual_ms = 0.0

    @property
    def wanted(self) -> bool:
        """Whether there is a share to keep."""
        return self._least > 0

    def chosen(self, *, local: bool, difference_ms: float) -> None:
        """A choice between a local and a remote way was made; ``difference_ms``: of their predictions."""
        difference_ms = abs(difference_ms)
        self._usual_ms = (
            MEMORY * self._usual_ms + (1 - MEMORY) * difference_ms if self._usual_ms else difference_ms
        )
        moved_ms = self.credit_ms + GAIN * self._usual_ms * (self._least - local)
        self.credit_ms = min(MOST * self._usual_ms, max(0.0, moved_ms))
