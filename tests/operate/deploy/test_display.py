from __future__ import annotations

import io
import json
import shlex

from tokenmill.operate.deploy import display
from tokenmill.operate.deploy.display import LineDisplay, TerminalDisplay
from tokenmill.operate.deploy.plant import ProcessStatus, State


def row(state, *, name="decode-0", pid=1, message=""):
    return ProcessStatus(
        name=name, stage="decode", role="decode", state=state, pid=pid, since=0.0, restarts=0, message=message
    )


def test_a_state_is_written_when_it_changes():
    err = io.StringIO()
    shown = LineDisplay(err, io.StringIO())
    shown.progress([row(State.LOADING)])
    shown.progress([row(State.LOADING)])
    shown.progress([row(State.LOADING, pid=2), row(State.READY)])
    shown.progress([row(State.LOADING, pid=2), row(State.READY)])
    shown.progress([row(State.WAITING, pid=None, message="boom")])
    assert err.getvalue().splitlines() == [
        "[decode-0] loading", "[decode-0] loading", "[decode-0] ready", "[decode-0] waiting (boom)",
    ]  # fmt: skip


def test_the_command_to_try_survives_the_shell():
    out = io.StringIO()
    LineDisplay(io.StringIO(), out).announce(["http://127.0.0.1:8000"], "it's")
    assert "Tokenmill serves it's at http://127.0.0.1:8000" in out.getvalue()
    words = shlex.split(out.getvalue()[out.getvalue().index("curl") :])
    assert words[:2] == ["curl", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "it's"


def test_the_log_of_a_detached_factory_stays_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(display, "MAX_LOG_BYTES", 1000)
    path = tmp_path / "log"
    with path.open("a") as stream:
        shown = LineDisplay(stream, stream, log_file=path)
        for i in range(100):
            shown.log("decode-0", f"line {i:04d} {'x' * 40}")
    assert path.stat().st_size <= 1100
    assert (tmp_path / "log.1").stat().st_size <= 1100
    assert "line 0099" in path.read_text() + (tmp_path / "log.1").read_text()


def test_on_a_terminal_log_lines_bear_coloured_names_and_markup_stays_text(capsys):
    shown = TerminalDisplay()
    shown.progress([row(State.WAITING, message="[bold]boom")])
    shown.log("decode-0", "a [red]line")
    shown.say("draining")
    shown.progress([row(State.READY)])
    shown.announce(["http://127.0.0.1:1"], "m")
    shown.close()
    captured = capsys.readouterr()
    assert "\x1b[36m[decode-0]\x1b[0m a [red]line" in captured.err
    assert "draining" in captured.err
    assert "Tokenmill serves m at http://127.0.0.1:1" in captured.out
