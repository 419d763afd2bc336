"""Why a handoff failed, in few words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenmill.serve.engines.vllm.losses import LogClues, Lost, lost_by

PREFIX = "(EngineCore pid=20847) ERROR 11-21 15:20:34 [base_worker.py:1354] "


def told(kind: str, request: object, error: str) -> list[str]:
    """Lines as vLLM 0.32 writes them."""
    context = f"'failure_type': '{kind}', 'request_id': {request!r}, 'engine_id': '028d', 'remote_port': 5600"
    return [
        f"{PREFIX}NIXL transfer failure: {kind} | Context: {{{context}}}",
        f"{PREFIX}Traceback (most recent call last):",
        f'{PREFIX}  File "base_worker.py", line 1080, in _nixl_handshake',
        f"{PREFIX}    raise RuntimeError(",
        f"{PREFIX}{error}",
    ]


CASES = [
    (
        "handshake_failed",
        "RuntimeError: NIXL compatibility hash mismatch. Local: d0, Remote: 79.",
        Lost.MISMATCH,
    ),
    (
        "handshake_failed",
        "RuntimeError: Remote NIXL agent engine ID mismatch. Expected nobody,received 15.",
        Lost.MISMATCH,
    ),
    ("handshake_failed", "zmq.error.Again: Resource temporarily unavailable", Lost.UNREACHABLE),
    (
        "transfer_setup_failed",
        "nixl_cu12._bindings.nixlRemoteDisconnectError: NIXL_ERR_REMOTE_DISCONNECT",
        Lost.UNREACHABLE,
    ),
    ("transfer_failed", "ValueError: something else", Lost.ENGINE),
]


@pytest.mark.parametrize(("kind", "error", "reason"), CASES, ids=[error[:30] for _, error, _ in CASES])
def test_the_log_names_the_reason(kind: str, error: str, reason: Lost) -> None:
    clues = LogClues()
    for line in ("INFO all is well", *told(kind, "cmpl-abc-1-0-b6ee8203", error)):
        clues.take(line)
    clue = clues.of("abc-1")
    assert clue == f"{kind}: {error.split(': ', 1)[1]}"
    assert lost_by(clue) is reason
    assert clues.of("bc-1") == ""


def test_each_request_has_its_own() -> None:
    clues = LogClues()
    lines = [
        *told("handshake_setup_failed", None, "RuntimeError: of nobody"),
        *told("handshake_failed", "cmpl-one-0-aa", "RuntimeError: first"),
        *told("handshake_failed", "generate-tokens-two-bb", "RuntimeError: second"),
    ]
    for line in lines:
        clues.take(line)
    assert clues.of("one") == "handshake_failed: first"
    assert clues.of("two") == "handshake_failed: second"
    assert clues.of("three") == ""


def test_it_forgets() -> None:
    clues = LogClues()
    for number in range(1000):
        for line in told("handshake_failed", f"cmpl-r{number}-0-aa", "RuntimeError: x"):
            clues.take(line)
    assert clues.of("r999")
    assert not clues.of("r1")


@given(st.lists(st.text()))
def test_no_line_crashes_it(lines: list[str]) -> None:
    clues = LogClues()
    for line in lines:
        clues.take(line)
        lost_by(line)
    assert clues.of("r") == ""


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("the sender refused the handoff: the export has ended: its lease ended", Lost.LEASE_EXPIRED),
        ("the sender's lease ended while its cache was being copied", Lost.LEASE_EXPIRED),
        ("the sender cannot be reached (shm: [Errno 111] Connection refused)", Lost.UNREACHABLE),
        ("the sender did not answer for 10 s", Lost.UNREACHABLE),
        ("the KV cache did not arrive: the peer hung up", Lost.UNREACHABLE),
        ("its cache is laid out in another way (1, here 2): give both stages the same vLLM", Lost.MISMATCH),
        ("it was made by another KV connector: give both stages the same kv_connector", Lost.MISMATCH),
        ("something else", Lost.ENGINE),
    ],
)
def test_our_own_connectors_words(why: str, reason: Lost) -> None:
    clues = LogClues()
    clues.take(f"(EngineCore pid=1) WARNING 11-21 [mover.py:218] the handoff of cmpl-r7-0-ab12 failed: {why}")
    assert clues.of("r7") == why
    assert lost_by(clues.of("r7")) is reason
