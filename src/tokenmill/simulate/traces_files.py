"""Request traces that others published, read as one list of requests; the format is found by the content.

Exists so that nobody else knows file formats. It must not know workers or routing.

Two forms are known. JSON lines as Mooncake's: ``timestamp`` (ms), ``input_length``, ``output_length`` and
``hash_ids``. Comma-separated with a header: an arrival (seconds, or a date and time) and two lengths, under
the names that Azure's traces, BurstGPT and simulators made from them use. Either may say each request's
``class``, ``tenant`` and ``priority``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from tokenmill.errors import ConfigError
from tokenmill.simulate.traces import Trace, TracedRequest
from tokenmill.simulate.traces_table import read_table

MOONCAKE_BLOCK_TOKENS: Final = 512
"""Tokens that one of a Mooncake trace's ``hash_ids`` stands for."""

MOST_TOKENS: Final = 100_000_000
"""No prompt and no answer is longer; such a number is some other column."""


_NAMES: Final = ("timestamp", "input_length", "output_length", "priority")


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()
    klass: str = msgspec.field(default="", name="class")
    tenant: str = ""
    priority: int = 0


def read_trace(path: Path) -> Trace:
    """Read a trace. Raises ConfigError, naming the file, the line, the field and the fix."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
        if not start.strip():
            raise ConfigError(f"trace {path.name}: the file is empty", param="trace")
        return read_mooncake(path) if start.lstrip()[:1] == b"{" else read_csv(path)
    except FileNotFoundError:
        hint = "name a file, or a kind of load such as poisson:rate=5,prompt=3000,output=150,seconds=600"
        raise ConfigError(f"trace {path}: no such file; {hint}", param="trace") from None
    except OSError as error:
        raise ConfigError(f"trace {path}: cannot be read: {error.strerror}", param="trace") from None


def read_mooncake(path: Path) -> Trace:
    """Read JSON lines; a request's last block may be short. Raises ConfigError; OSError as ``open`` does."""
    decoder = msgspec.json.Decoder(_Line)
    requests: list[TracedRequest] = []
    for number, line in _lines(path):
        try:
            got = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise bad_line(path, number, _words(error)) from error
        requests.append(_request(path, number, got.timestamp / 1000, got, _NAMES))
        _check_ids(path, number, got)
    return Trace(_in_order(path, requests), MOONCAKE_BLOCK_TOKENS)


def read_csv(path: Path) -> Trace:
    """Read comma-separated requests with a header; their prompts share nothing. Raises ConfigError; OSError
    as ``open`` does."""
    requests: list[TracedRequest] = []
    names: tuple[str, str, str, str] | None = None
    for number, row in read_table(path):
        names = names or row.names
        got = _Line(0.0, row.prompt_tokens, row.output_tokens, (), row.klass, row.tenant, row.priority)
        requests.append(_request(path, number, row.at_s, got, names))
    ordered = _in_order(path, requests)
    if ordered[0].at_s > _EPOCH_S:  # dates, or seconds since 1970: the first request is the start
        start = ordered[0].at_s
        ordered = [msgspec.structs.replace(each, at_s=each.at_s - start) for each in ordered]
    return Trace(ordered)


_EPOCH_S: Final = 1e8
"""Arrivals later than three years after the start are dates."""


def bad_line(path: Path, number: int, what: str) -> ConfigError:
    """Return what is said of a line that cannot be read."""
    return ConfigError(f"trace {path.name}, line {number}: {what}", param="trace")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _words(error: Exception) -> str:
    """What is amiss with a line, and what a line looks like."""
    example = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}'
    return f"{error}; a line is like {example}"


def _check_ids(path: Path, number: int, got: _Line) -> None:
    blocks = -(-got.input_length // MOONCAKE_BLOCK_TOKENS)
    if got.hash_ids and len(got.hash_ids) != blocks:
        what = f"{got.input_length} tokens need {blocks} hash_ids (one for {MOONCAKE_BLOCK_TOKENS} tokens)"
        raise bad_line(path, number, f"hash_ids: {what}, not {len(got.hash_ids)}")
    if got.hash_ids and min(got.hash_ids) < 0:
        raise bad_line(path, number, f"hash_ids: {min(got.hash_ids)}; give 0 or more")


def _request(
    path: Path, number: int, at_s: float, got: _Line, names: tuple[str, str, str, str]
) -> TracedRequest:
    """Check the numbers. A request without prompt or output cannot be served; it stands for one token."""
    if not 0 <= at_s < math.inf:
        raise bad_line(path, number, f"{names[0]}: {at_s:g}; give a time from the start on")
    for name, tokens in zip(names[1:3], (got.input_length, got.output_length), strict=True):
        if not 0 <= tokens <= MOST_TOKENS:
            raise bad_line(path, number, f"{name}: {tokens}; give tokens, 0 to {MOST_TOKENS}")
    if not -100 <= got.priority <= 100:
        raise bad_line(path, number, f"{names[3]}: {got.priority}; give -100 to 100")
    return TracedRequest(
        at_s,
        max(1, got.input_length),
        max(1, got.output_length),
        got.hash_ids,
        got.klass,
        got.tenant,
        got.priority,
    )


def _in_order(path: Path, requests: list[TracedRequest]) -> list[TracedRequest]:
    if not requests:
        raise ConfigError(f"trace {path.name}: there are no requests in it", param="trace")
    return sorted(requests, key=lambda request: request.at_s)
