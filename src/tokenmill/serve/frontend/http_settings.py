"""From a frontend's config to what its HTTP server takes.

Exists so that the server knows no config and the config no server. It must not know routes.
"""

from __future__ import annotations

import ssl

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.cors import Cors, cors_rule
from tokenmill.serve.frontend.http.messages import HttpLimits
from tokenmill.serve.frontend.http.tls import server_context
from tokenmill.spec.process import FrontendConfig


def http_limits(config: FrontendConfig) -> HttpLimits:
    """Return what a client may ask of memory and patience."""
    return HttpLimits(
        max_head_bytes=config.max_header_bytes,
        max_headers=config.max_headers,
        max_target_bytes=config.max_url_bytes,
        max_body_bytes=config.max_body_bytes,
        max_connections=config.max_connections,
        max_pipelined=config.max_pipelined,
        max_buffered_bytes=config.max_buffered_mb * 1024 * 1024,
        idle_timeout_s=config.idle_timeout_s,
        header_timeout_s=config.header_timeout_s,
        read_timeout_s=config.read_timeout_s,
        write_timeout_s=config.write_timeout_s,
        write_high_bytes=config.write_buffer_bytes,
    )


def tls_context(config: FrontendConfig) -> ssl.SSLContext | None:
    """Return the TLS context, None for plain HTTP. Raises ConfigError naming the field at fault."""
    if config.tls_cert:
        return server_context(config.tls_cert, config.tls_key, config.tls_client_ca)
    for param in ("tls_key", "tls_client_ca"):
        if getattr(config, param):
            raise ConfigError(f"{param}: needs a certificate; name it in tls_cert", param=param)
    return None


def cors(config: FrontendConfig) -> Cors | None:
    """Return the rule for other origins' pages, None where there are none. Raises ConfigError."""
    return cors_rule(config.cors_origins, credentials=config.cors_credentials)
