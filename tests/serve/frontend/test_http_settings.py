from __future__ import annotations

from dataclasses import fields

import pytest
from tests.serve.frontend.http.certificates import make_certificates

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.messages import HttpLimits
from tokenmill.serve.frontend.http_settings import cors, http_limits, tls_context
from tokenmill.spec.process import FrontendConfig


def test_the_defaults_are_the_servers_own():
    assert http_limits(FrontendConfig()) == HttpLimits()


def test_every_limit_can_be_set():
    config = FrontendConfig(
        max_header_bytes=1, max_headers=2, max_url_bytes=3, max_body_bytes=4, max_connections=5,
        max_pipelined=6, max_buffered_mb=7, idle_timeout_s=8, header_timeout_s=9, read_timeout_s=10,
        write_timeout_s=11, write_buffer_bytes=12,
    )  # fmt: skip
    limits = http_limits(config)
    standard = HttpLimits()
    assert all(getattr(limits, each.name) != getattr(standard, each.name) for each in fields(HttpLimits))


def test_plain_http_where_no_certificate_is_named():
    assert tls_context(FrontendConfig()) is None


@pytest.mark.parametrize("field", ["tls_key", "tls_client_ca"])
def test_half_of_tls_is_a_mistake(field):
    with pytest.raises(ConfigError, match=f"{field}: needs a certificate; name it in tls_cert"):
        tls_context(FrontendConfig(**{field: "x"}))


def test_a_certificate_makes_tls(tmp_path):
    files = make_certificates(tmp_path)
    names = {"tls_cert": "server.pem", "tls_key": "server.key", "tls_client_ca": "ca.pem"}
    context = tls_context(FrontendConfig(**{field: files.path(name) for field, name in names.items()}))
    assert context is not None
    assert context.verify_mode.name == "CERT_REQUIRED"


def test_origins():
    assert cors(FrontendConfig()) is None
    assert cors(FrontendConfig(cors_origins=["*"])) is not None
    with pytest.raises(ConfigError, match="cors_origins"):
        cors(FrontendConfig(cors_origins=["example"]))
