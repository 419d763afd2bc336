"""What a request's headers say of its place in line.

Exists so that all APIs read the same headers in one way. It must not know the queue.
"""

from __future__ import annotations

import math

from tokenmill.decide.router.admission_words import MAX_PRIORITY
from tokenmill.errors import BadRequest
from tokenmill.serve.frontend.http.messages import Request
from tokenmill.serve.frontend.standing import Standing
from tokenmill.spec.process import FrontendConfig

PRIORITY_HEADER = "x-request-priority"
DEADLINE_HEADER = "x-request-deadline-ms"
_LONGEST_NAME = 256
_LONGEST_DEADLINE_MS = 86_400_000.0


def standing_of(
    request: Request, body_priority: int | None, config: FrontendConfig, received_at: float
) -> Standing:
    """Read it; a header goes before the body's field. Raises BadRequest that names the header."""
    headers = request.headers
    priority = _priority(headers.get(PRIORITY_HEADER))
    deadline_ms = _deadline_ms(headers.get(DEADLINE_HEADER))
    return Standing(
        tenant=_name(config.admission_tenant_header, headers.get(config.admission_tenant_header.lower())),
        session=_name(config.router_session_header, headers.get(config.router_session_header.lower())),
        priority=(body_priority or 0) if priority is None else priority,
        deadline_at=None if deadline_ms is None else received_at + deadline_ms / 1000,
    )


def _name(header: str, text: str | None) -> str:
    if text is None:
        return ""
    if len(text) > _LONGEST_NAME:
        raise BadRequest(
            f"header {header}: at most {_LONGEST_NAME} characters, got {len(text)}", param=header
        )
    return text


def _priority(text: str | None) -> int | None:
    if text is None:
        return None
    digits = text.strip()
    if len(digits) <= 4 and digits.removeprefix("-").isdecimal() and digits.isascii():
        priority = int(digits)
        if -MAX_PRIORITY <= priority <= MAX_PRIORITY:
            return priority
    raise BadRequest(
        f"header {PRIORITY_HEADER} must be a whole number from -{MAX_PRIORITY} to {MAX_PRIORITY}, "
        f"got {text[:20]!r}",
        param=PRIORITY_HEADER,
    )


def _deadline_ms(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= _LONGEST_DEADLINE_MS:
        raise BadRequest(
            f"header {DEADLINE_HEADER} must be milliseconds, more than 0 and at most "
            f"{_LONGEST_DEADLINE_MS:.0f}, got {text[:20]!r}",
            param=DEADLINE_HEADER,
        )
    return value
