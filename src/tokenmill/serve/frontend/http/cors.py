"""Cross-origin requests: which web pages' scripts may read our answers.

Exists because browsers ask before they send, and refuse to hand over what is not allowed. It must not know
routes. Without a list of origins nothing of this is sent, and pages of other origins read nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.messages import Request

Headers = tuple[tuple[str, str], ...]

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?")
_NAMES: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[!#$%&'*+\-.^_`|~0-9A-Za-z]+)*")
_LONGEST_NAMES: Final = 2048
_MAX_AGE_S: Final = 600
_USUAL_HEADERS: Final = "authorization, content-type, x-request-id"
_EXPOSED: Final = ("access-control-expose-headers", "x-request-id, retry-after")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    """The rule. ``origins`` empty: any page may read, but never with a user's credentials."""

    origins: frozenset[str]
    credentials: bool

    def headers(self, request: Request) -> Headers:
        """Return what an answer to ``request`` carries."""
        if not self.origins:
            return (("access-control-allow-origin", "*"), _EXPOSED)
        vary = ("vary", "Origin")
        origin = request.headers.get("origin")
        if origin is None or origin.lower() not in self.origins:
            return (vary,)
        allowed: Headers = (("access-control-allow-origin", origin), _EXPOSED, vary)
        return (*allowed, ("access-control-allow-credentials", "true")) if self.credentials else allowed

    def preflight(self, request: Request, methods: Sequence[str]) -> Headers:
        """Return what the answer to OPTIONS carries beside ``headers``; nothing where no browser asks, or one
        for an origin that is not allowed."""
        headers = request.headers
        origin = headers.get("origin")
        if origin is None or "access-control-request-method" not in headers:
            return ()
        if self.origins and origin.lower() not in self.origins:
            return ()
        wanted = headers.get("access-control-request-headers", "")
        if len(wanted) > _LONGEST_NAMES or _NAMES.fullmatch(wanted) is None:
            wanted = _USUAL_HEADERS
        return (
            ("access-control-allow-methods", ", ".join(methods)),
            ("access-control-allow-headers", wanted),
            ("access-control-max-age", str(_MAX_AGE_S)),
            ("vary", "Access-Control-Request-Method, Access-Control-Request-Headers"),
        )


def cors_rule(origins: Sequence[str], *, credentials: bool) -> Cors | None:
    """Return the rule for these origins ("*": all), None for no origins. Raises ConfigError."""
    if not origins:
        if credentials:
            raise ConfigError("cors_credentials: name the origins in cors_origins", param="cors_credentials")
        return None
    if "*" in origins:
        if len(origins) > 1:
            raise ConfigError('cors_origins: "*" allows all; remove the others', param="cors_origins")
        if credentials:
            raise ConfigError(
                'cors_credentials: not with "*": name the origins in cors_origins', param="cors_credentials"
            )
        return Cors(origins=frozenset(), credentials=False)
    for origin in origins:
        if _ORIGIN.fullmatch(origin.lower()) is None:
            raise ConfigError(
                f'cors_origins: "{origin}" is not like https://example.com (no path, no slash at the end)',
                param="cors_origins",
            )
    return Cors(origins=frozenset(origin.lower() for origin in origins), credentials=credentials)
