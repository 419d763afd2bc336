"""Request traces that others published, as one list of requests.

Exists so that the plant need not know file formats. It must not know workers or routing.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from tokenmill.errors import ConfigError


class TracedRequest(msgspec.Struct, frozen=True, gc=False):
    """One request of a trace.

    ``at_s``: arrival in seconds since the trace's start. ``prompt_tokens``, ``output_tokens``: lengths.
    ``prefix_ids``: one id for each block of ``prefix_block_tokens`` prompt tokens, the last maybe short; two
    requests whose first n ids are equal have the same first n blocks. Empty: the prompt is like no other.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_ids: tuple[int, ...] = ()


class Trace(msgspec.Struct, frozen=True):
    """Requests in the order of arrival."""

    requests: list[TracedRequest]
    prefix_block_tokens: int = 512

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens of all requests."""
        return sum(request.prompt_tokens for request in self.requests)

    def faster(self, speedup: float) -> Trace:
        """Return the trace with all arrivals ``speedup`` times as dense."""
        return self._with(
            msgspec.structs.replace(request, at_s=request.at_s / speedup) for request in self.requests
        )

    def between(self, start_s: float, end_s: float) -> Trace:
        """Return the requests that arrive from ``start_s`` to before ``end_s``, counted from ``start_s``."""
        return self._with(
            msgspec.structs.replace(request, at_s=request.at_s - start_s)
            for request in self.requests
            if start_s <= request.at_s < end_s
        )

    def _with(self, requests: Iterable[TracedRequest]) -> Trace:
        return Trace(list(requests), self.prefix_block_tokens)


def sessions_of(trace: Trace) -> list[str]:
    """Return what each request's client might call its conversation; empty where prompts tell nothing.

    Traces tell no sessions. Two requests are taken to be of one when their prompts are equal up to the first
    block that is not a common head, such as a system prompt: one that more than 1 % of all requests have.
    """
    having = Counter(prefix_id for request in trace.requests for prefix_id in request.prefix_ids)
    common = max(1, len(trace.requests) // 100)
    own = (next((i for i in r.prefix_ids if having[i] <= common), None) for r in trace.requests)
    return ["" if first is None else str(first) for first in own]


class _MooncakeLine(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...]


MOONCAKE_BLOCK_TOKENS = 512
"""Tokens that one of a Mooncake trace's ``hash_ids`` stands for."""


def read_trace(path: Path) -> Trace:
    """Read a trace by its ending: ``.jsonl`` as Mooncake's, ``.csv`` as the Azure traces'.

    Raises ConfigError, naming the line and the fix, for another ending or a malformed line.
    """
    if path.suffix == ".jsonl":
        return read_mooncake(path)
    if path.suffix == ".csv":
        return read_azure(path)
    raise ConfigError(
        f"trace {path.name}: give a .jsonl file (Mooncake) or a .csv file (Azure)", param="trace"
    )


def read_mooncake(path: Path) -> Trace:
    """Read JSON lines of ``timestamp`` (ms), ``input_length``, ``output_length`` and ``hash_ids``.

    Raises ConfigError for a malformed line; a last block may be short.
    """
    decoder = msgspec.json.Decoder(_MooncakeLine)
    requests: list[TracedRequest] = []
    for number, line in _lines(path):
        try:
            got = decoder.decode(line)
        except msgspec.DecodeError as error:
            raise _bad(path, number, str(error)) from error
        blocks = -(-got.input_length // MOONCAKE_BLOCK_TOKENS)
        if got.hash_ids and len(got.hash_ids) != blocks:
            raise _bad(path, number, f"{got.input_length} tokens need {blocks} hash_ids")
        requests.append(_request(got.timestamp / 1000, got.input_length, got.output_length, got.hash_ids))
    return Trace(_sorted(requests), MOONCAKE_BLOCK_TOKENS)


def read_azure(path: Path) -> Trace:
    """Read comma-separated ``arrived_at`` (s), ``num_prefill_tokens``, ``num_decode_tokens``, with a header.

    Raises ConfigError for a malformed line. Prompts of such a trace share nothing.
    """
    requests: list[TracedRequest] = []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        for number, row in enumerate(reader, start=2):
            try:
                at_s = float(row["arrived_at"])
                lengths = int(row["num_prefill_tokens"]), int(row["num_decode_tokens"])
            except (KeyError, TypeError, ValueError) as error:
                raise _bad(path, number, str(error)) from error
            requests.append(_request(at_s, *lengths, ()))
    return Trace(_sorted(requests))


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _request(at_s: float, prompt: int, output: int, ids: tuple[int, ...]) -> TracedRequest:
    # A request without prompt or output cannot be served; such lines stand for one token of each.
    return TracedRequest(at_s, max(1, prompt), max(1, output), ids)


def _sorted(requests: list[TracedRequest]) -> list[TracedRequest]:
    return sorted(requests, key=lambda request: request.at_s)


def _bad(path: Path, number: int, what: str) -> ConfigError:
    return ConfigError(f"trace {path.name}, line {number}: {what}", param="trace")
