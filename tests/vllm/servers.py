"""A vLLM server spoken to directly: what it says without Tokenmill is what it must say with it."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request

import psutil


class Server:
    """A server on this host. ``process``: as it was started by a worker."""

    def __init__(self, port: int, process: psutil.Process) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.process = process

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """A counter's value, summed over those of its labels that are not given."""
        found = 0.0
        for given, value in re.findall(
            rf"^{re.escape(name)}(?:{{(.*)}})? (\S+)$", self.get("/metrics"), re.MULTILINE
        ):
            if all(f'{key}="{wanted}"' in given for key, wanted in labels.items()):
                found += float(value)
        return found

    def complete(self, body: dict) -> dict:
        """A whole completion with token ids. Raises HTTPError."""
        whole = {"model": "m", "return_token_ids": True, **body}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(whole).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def tokens(self, body: dict) -> list[int]:
        return self.complete(body)["choices"][0]["token_ids"]


def refused(server: Server, body: dict) -> str:
    """The error that the server answers with; "" where it answers well."""
    try:
        server.complete(body)
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()
    return ""
