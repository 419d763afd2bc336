"""Admission as the frontend's settings have it.

Exists so that the wiring in ``main`` is one line. It must not know workers.
"""

from __future__ import annotations

import math

from tokenmill.decide.router.admission_words import AdmissionSettings, BusyThresholds, FairCharges
from tokenmill.errors import ConfigError
from tokenmill.spec.process import FrontendConfig


def admission_settings(config: FrontendConfig) -> AdmissionSettings:
    """Return what ``config`` says. Raises ConfigError that names the field."""
    for name in ("max_queued", "max_queued_tokens", "max_wait_s", "busy_prefill_s", "level_turn_s"):
        value = getattr(config, f"admission_{name}")
        if value <= 0:
            raise ConfigError(
                f"admission_{name} is {value}: give a number above 0", param=f"admission_{name}"
            )
    for tenant, weight in config.admission_tenant_weights.items():
        if not 0 < weight < math.inf:
            raise ConfigError(
                f"admission_tenant_weights: {tenant} has {weight}; give a number above 0",
                param="admission_tenant_weights",
            )
    return AdmissionSettings(
        busy=_thresholds(config),
        charges=FairCharges(
            input=config.admission_charge_input,
            cached=config.admission_charge_cached,
            output=config.admission_charge_output,
        ),
        tenant_weights=config.admission_tenant_weights,
        max_queued=config.admission_max_queued,
        max_queued_tokens=config.admission_max_queued_tokens,
        max_wait_s=config.admission_max_wait_s,
        no_worker_wait_s=config.worker_wait_s,
        level_turn_s=config.admission_level_turn_s,
    )


def _thresholds(config: FrontendConfig) -> BusyThresholds:
    if not config.admission_enabled:  # nobody is ever busy
        return BusyThresholds(
            kv_share=math.inf, prefill_s=math.inf, prefill_tokens=1 << 60, spare_places=math.inf
        )
    return BusyThresholds(
        kv_share=config.admission_busy_kv_share,
        prefill_s=config.admission_busy_prefill_s,
        prefill_tokens=config.admission_busy_prefill_tokens,
        spare_places=config.admission_busy_spare_places,
    )
