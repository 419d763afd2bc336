"""What the doctor says of servers that stages attach to, over real sockets."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tokenmill.errors import ConfigError, WorkerLost
from tokenmill.operate.deploy.attached import attached_stages, what_server_has
from tokenmill.spec.load import parse_factory

KEY = "sk-secret"


class Handler(BaseHTTPRequestHandler):
    """Lists twelve models to who has the key."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        good = self.headers.get("authorization") == f"Bearer {KEY}"
        listed = {"data": [{"id": f"m{number}", "max_model_len": 512} for number in range(12)]}
        refused = {"error": {"message": f"not {self.headers.get('authorization')}"}}
        body = json.dumps(listed if good else refused).encode()
        self.send_response(200 if good else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(url: str, model: str = "{}", key: str = KEY) -> str:
    factory = parse_factory(
        f"metadata: {{name: a}}\nmodel: {model}\nstages: [{{name: w, engine: openai, attach: '{url}', "
        "attach_key: 'env:A_KEY'}]",
        "f",
    )
    (stage,) = attached_stages(factory)
    return what_server_has(factory, stage, {"A_KEY": key})


def test_a_server_is_asked_what_it_has(url: str):
    assert said(url) == f"{url} has m0, m1, m2, m3, m4, m5, m6, m7, m8, m9 and 2 more"
    assert said(url, "{name: far, path: m3}") == f"{url} has m3, context 512 tokens"


def test_a_model_that_it_lacks_and_a_key_that_it_refuses_are_faults(url: str):
    with pytest.raises(ConfigError, match="has no 'm77'; it has m0, m1"):
        said(url, "{name: m77}")
    with pytest.raises(ConfigError, match=r"refuses it .*not Bearer \*\*\*"):
        said(url, key="sk-wrong")


def test_a_server_that_is_not_there_may_come():
    with pytest.raises(WorkerLost, match="cannot connect"):
        said("http://127.0.0.1:9")


def test_only_servers_of_text_are_asked():
    factory = parse_factory(
        "metadata: {name: a}\nstages: [{name: w, engine: vllm, attach: 'http://h:1'}]", "f"
    )
    assert attached_stages(factory) == []
