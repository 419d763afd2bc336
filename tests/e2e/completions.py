"""Whole completions by token ids, one or many at once, and what the frontend's metrics say of them."""

from __future__ import annotations

import json
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from tokenmill.testing.running_factory import RunningFactory


def complete(factory: RunningFactory, ids: list[int], name: str = "", **fields: object) -> dict:
    """Ask for a greedy completion. ``name``: the request's id."""
    body = {"prompt": ids, "max_tokens": 24, "temperature": 0, "return_token_ids": True, **fields}
    headers = {"content-type": "application/json", **({"x-request-id": name} if name else {})}
    request = urllib.request.Request(f"{factory.url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.load(answer)


def tokens(answer: dict) -> list[int]:
    return answer["choices"][0]["token_ids"]


def at_once(factory: RunningFactory, asked: list[list[int]], **fields: object) -> list[list[int]]:
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda ids: tokens(complete(factory, ids, **fields)), asked))


def metric(factory: RunningFactory, name: str) -> float:
    """The sum of all lines that begin with ``name``."""
    lines = factory.get("/metrics")[1].splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))
