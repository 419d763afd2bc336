"""Ways to choose a worker that are not the cost function: each a plain class of its own.

Exists as the one list of names. It must not know where a user's own policies are installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Protocol

from tokenmill.decide.router.policies.least_loaded import LeastLoaded
from tokenmill.decide.router.policies.power_of_two import PowerOfTwo
from tokenmill.decide.router.policies.random_worker import RandomWorker
from tokenmill.decide.router.policies.round_robin import RoundRobin
from tokenmill.decide.router.policies.session import Session
from tokenmill.decide.router.types import RouterPolicy
from tokenmill.errors import ConfigError


class _Seeded(Protocol):
    def __call__(self, *, seed: int) -> RouterPolicy: ...


POLICIES: Final[Mapping[str, _Seeded]] = MappingProxyType(
    {
        "least-loaded": LeastLoaded,
        "power-of-two": PowerOfTwo,
        "round-robin": RoundRobin,
        "random": RandomWorker,
        "session": Session,
    }
)


def make_policy(name: str, seed: int) -> RouterPolicy:
    """Return a new policy of that name. Raises ConfigError for one that is not in ``POLICIES``."""
    if name not in POLICIES:
        known = ", ".join(("kv", *POLICIES))
        raise ConfigError(f"router policy {name!r} is unknown; known are {known}", param="router.policy")
    return POLICIES[name](seed=seed)
