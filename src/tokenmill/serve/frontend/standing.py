"""Who asks, and how urgently: a request's place in line.

Exists so that requests for tokens and for text carry it alike. It must not know where it was read.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """``priority``: larger is sooner. ``deadline_at``: when nobody wants the answer any more, on the clock of
    the frontend; None: not said."""

    tenant: str = ""
    session: str = ""
    priority: int = 0
    deadline_at: float | None = None
