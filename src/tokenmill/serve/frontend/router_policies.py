"""A user's own router policy: found among the installed packages by its name.

Exists so that ``decide`` loads no code that it does not know. It must not know what a policy does.

A package declares it as an entry point of the group ``tokenmill.router_policies``: a class without arguments
whose ``choose`` is that of ``decide.router.types.RouterPolicy``.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from tokenmill.decide.router.policies import POLICIES
from tokenmill.decide.router.router import PolicyMaker
from tokenmill.errors import ConfigError
from tokenmill.spec.plugins import ROUTER_POLICIES, installed


def policy_maker(name: str) -> PolicyMaker | None:
    """Return what makes the policy of that name; None for one that the router brings along.

    Raises ConfigError for a name that is neither, and for a class that cannot be loaded or used.
    """
    if name == "kv" or name in POLICIES:
        return None
    found = list(entry_points(group=ROUTER_POLICIES, name=name))
    if not found:
        known = ", ".join(("kv", *POLICIES, *installed(ROUTER_POLICIES)))
        raise ConfigError(f"router policy {name!r} is unknown; known are {known}", param="router_policy")
    try:
        maker: PolicyMaker = found[0].load()
        policy = maker()
    except Exception as error:  # a stranger's code: whatever it raises, the message says where it comes from
        raise ConfigError(
            f"router policy {name!r} ({found[0].value}) cannot be made: {type(error).__name__}: {error}",
            param="router_policy",
        ) from error
    if not callable(getattr(policy, "choose", None)):
        raise ConfigError(
            f"router policy {name!r} ({found[0].value}) has no method choose(candidates, request, now)",
            param="router_policy",
        )
    return maker
