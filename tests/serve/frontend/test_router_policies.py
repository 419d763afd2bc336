"""Policies of other packages that cannot be used. The documentation's example is tested with the docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill.errors import ConfigError
from tokenmill.serve.frontend.router_policies import policy_maker
from tokenmill.spec.plugins import ROUTER_POLICIES, installed

SOURCE = """
class Mute:
    pass

class Broken:
    def __init__(self):
        raise RuntimeError("no licence")
"""


@pytest.fixture
def strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install a package with policies that cannot be used."""
    (tmp_path / "strangers.py").write_text(SOURCE)
    info = tmp_path / "strangers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: strangers\nVersion: 1.0\n")
    entries = ("mute = strangers:Mute", "broken = strangers:Broken", "gone = strangers:Gone")
    (info / "entry_points.txt").write_text("\n".join((f"[{ROUTER_POLICIES}]", *entries)))
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["kv", "least-loaded", "session"])
def test_what_the_router_brings_along_needs_no_package(name: str) -> None:
    assert policy_maker(name) is None


@pytest.mark.usefixtures("strangers")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mute", "strangers:Mute.* has no method choose"),
        ("broken", "cannot be made: RuntimeError: no licence"),
        ("gone", "strangers:Gone.* cannot be made: AttributeError"),
        ("absent", "unknown; known are kv, .*, broken, gone, mute"),
    ],
)
def test_one_that_cannot_be_used_is_named_with_the_reason(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        policy_maker(name)
    assert raised.value.param == "router_policy"
    assert installed(ROUTER_POLICIES) == ["broken", "gone", "mute"]
