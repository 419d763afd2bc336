from __future__ import annotations

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.http.cors import Cors, cors_rule
from tokenmill.serve.frontend.http.messages import Request

METHODS = ("POST", "OPTIONS")


def asking(**headers: str) -> Request:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("OPTIONS", "/", "", fields, b"", True, True)


def rule(*origins: str, credentials: bool = False) -> Cors:
    made = cors_rule(origins, credentials=credentials)
    assert made is not None
    return made


def names(headers) -> dict[str, str]:
    assert len({name for name, _ in headers}) == len(headers)
    return dict(headers)


def test_no_origins_no_rule():
    assert cors_rule([], credentials=False) is None


def test_a_listed_origin_is_named_and_caches_are_told():
    headers = names(
        rule("https://a.example", "http://localhost:3000").headers(asking(origin="https://A.example"))
    )
    assert headers["access-control-allow-origin"] == "https://A.example"
    assert headers["vary"] == "Origin"
    assert "retry-after" in headers["access-control-expose-headers"]
    assert "access-control-allow-credentials" not in headers


@pytest.mark.parametrize("origin", ["https://b.example", "null", "https://a.example.evil", "", "*"])
def test_other_origins_get_nothing_but_vary(origin):
    made = rule("https://a.example", credentials=True)
    assert made.headers(asking(origin=origin)) == (("vary", "Origin"),)
    assert made.preflight(asking(origin=origin, access_control_request_method="POST"), METHODS) == ()
    assert made.headers(asking()) == (("vary", "Origin"),)


def test_all_origins_never_with_credentials():
    headers = names(rule("*").headers(asking(origin="https://any.example")))
    assert headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in headers
    with pytest.raises(ConfigError, match=r'cors_credentials: not with "\*"'):
        cors_rule(["*"], credentials=True)


def test_credentials_for_listed_origins():
    headers = names(rule("https://a.example", credentials=True).headers(asking(origin="https://a.example")))
    assert headers["access-control-allow-credentials"] == "true"


def test_preflight():
    made = rule("https://a.example")
    question = asking(
        origin="https://a.example",
        access_control_request_method="POST",
        access_control_request_headers="authorization, x-stainless-os",
    )
    headers = names(made.preflight(question, METHODS))
    assert headers["access-control-allow-methods"] == "POST, OPTIONS"
    assert headers["access-control-allow-headers"] == "authorization, x-stainless-os"
    assert int(headers["access-control-max-age"]) > 0
    assert made.preflight(asking(origin="https://a.example"), METHODS) == ()


@pytest.mark.parametrize("wanted", ["", "a b", "x\x01", "a," * 2000, "a: b"])
def test_odd_header_names_are_not_sent_back(wanted):
    question = asking(origin="x", access_control_request_method="POST", access_control_request_headers=wanted)
    assert names(rule("*").preflight(question, METHODS))["access-control-allow-headers"] == (
        "authorization, content-type, x-request-id"
    )


@pytest.mark.parametrize(
    ("origins", "credentials", "param"),
    [
        (["https://a.example/"], False, "cors_origins"),
        (["a.example"], False, "cors_origins"),
        (["null"], False, "cors_origins"),
        (["https://*.example"], False, "cors_origins"),
        (["*", "https://a.example"], False, "cors_origins"),
        ([], True, "cors_credentials"),
    ],
)
def test_faults_are_named(origins, credentials, param):
    with pytest.raises(ConfigError) as caught:
        cors_rule(origins, credentials=credentials)
    assert caught.value.param == param
