"""From a frontend's config to what its router is told.

Exists so that the router knows no config and the config no router. It must not know workers.
"""

from __future__ import annotations

from tokenmill.decide.router.cost import CostWeights
from tokenmill.decide.router.settings import RouterSettings
from tokenmill.errors import ConfigError
from tokenmill.spec.process import FrontendConfig


def router_settings(config: FrontendConfig) -> RouterSettings:
    """Return the router's settings. Raises ConfigError for a weight that is none."""
    known = CostWeights.__dataclass_fields__
    if unknown := sorted(config.router_weights.keys() - known.keys()):
        raise ConfigError(
            f"router_weights: {unknown[0]!r} is none; there are {', '.join(known)}", param="router_weights"
        )
    return RouterSettings(
        policy=config.router_policy,
        prefill=config.router_prefill,
        local_share=config.router_local_share,
        itl_ms=config.slo_itl_ms,
        temperature_ms=config.router_temperature_ms,
        weights=CostWeights(**config.router_weights),
        kv_events=config.router_kv_events,
        index_blocks=config.router_index_blocks,
        predicted_ttl_s=config.router_predicted_ttl_s,
        approximate_ttl_s=config.router_approximate_ttl_s,
    )
