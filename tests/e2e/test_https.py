"""``serve`` with certificates: the printed URL is https, and only those with a certificate get in."""

from __future__ import annotations

import json
import ssl
import time
import urllib.request
from pathlib import Path

import pytest
from tests.serve.frontend.http.certificates import Certificates, make_certificates

from tokenmill.testing.running_factory import RunningFactory

pytestmark = pytest.mark.processes


def test_serve_over_mutual_tls(tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    files = make_certificates(tmp_path / "tls")
    factory = RunningFactory.start(
        tmp_path,
        *("--engine", "sim", "--both", "1", "--tls-cert", files.path("server.pem")),
        *("--tls-key", files.path("server.key"), "--tls-client-ca", files.path("ca.pem")),
    )
    try:
        url = f"https://127.0.0.1:{factory.port}"
        deadline = time.monotonic() + 60
        while url not in factory.log():
            assert factory.process.poll() is None, factory.log()
            assert time.monotonic() < deadline, factory.log()
            time.sleep(0.05)
        check(url, files)
    finally:
        status = factory.stop()
    assert status == 0


def check(url: str, files: Certificates) -> None:
    context = ssl.create_default_context(cafile=files.path("ca.pem"))
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/ready", timeout=10, context=context)
    context.load_cert_chain(files.path("client.pem"), files.path("client.key"))
    body = json.dumps({"prompt": "a", "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{url}/v1/completions", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30, context=context) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4
