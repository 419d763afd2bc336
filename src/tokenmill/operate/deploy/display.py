"""What a person sees of a factory: log lines with the process's name, progress while loading, the URL.

Log lines and progress go to standard error, the URL to standard output.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, TextIO

from tokenmill.operate.deploy.plant import ProcessStatus, State

MAX_LOG_BYTES: Final = 32 * 1024 * 1024
"""A detached factory's log is cut here; the piece before is kept as ``log.1``."""

_COLOURS: Final = (36, 33, 35, 32, 34, 96, 93, 95)


class Display(Protocol):
    """Where the supervisor shows things."""

    def log(self, name: str, line: str) -> None:
        """Show a line that a process wrote."""
        ...

    def progress(self, processes: Sequence[ProcessStatus]) -> None:
        """Show how far the processes are; called whenever one has changed."""
        ...

    def announce(self, urls: Sequence[str], model: str) -> None:
        """Show where the factory serves, now that it does."""
        ...

    def say(self, text: str) -> None:
        """Show a sentence of the supervisor's own."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class LineDisplay:
    """One line an event: for logs and pipes."""

    def __init__(self, err: TextIO, out: TextIO, *, log_file: Path | None = None) -> None:
        """``log_file``: where the two streams lead, if it is to be kept at a bounded size."""
        self._err, self._out, self._log_file = err, out, log_file
        self._shown: dict[tuple[str, int | None], str] = {}
        self._written = log_file.stat().st_size if log_file else 0

    def log(self, name: str, line: str) -> None:
        """Write ``[name] line``."""
        self._write(f"[{name}] {line}")

    def progress(self, processes: Sequence[ProcessStatus]) -> None:
        """Write a line for each process whose state is another than before."""
        before, self._shown = self._shown, {(each.name, each.pid): _describe(each) for each in processes}
        for (name, pid), text in self._shown.items():
            if before.get((name, pid)) != text:
                self._write(f"[{name}] {text}")

    def announce(self, urls: Sequence[str], model: str) -> None:
        """Write the URLs and a command to try."""
        print(_ready_text(urls, model), file=self._out, flush=True)

    def say(self, text: str) -> None:
        """Write a line."""
        self._write(text)

    def close(self) -> None:
        """Nothing to restore."""

    def _write(self, text: str) -> None:
        print(text, file=self._err, flush=True)
        self._written += len(text) + 1
        if self._log_file and self._written > MAX_LOG_BYTES:
            self._rotate(self._log_file)

    def _rotate(self, path: Path) -> None:
        path.replace(path.with_name(path.name + ".1"))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (self._out, self._err):
            os.dup2(fd, stream.fileno())
        os.close(fd)
        self._written = 0


class TerminalDisplay:
    """A status line that moves while something is on its way, coloured names before log lines."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415  only for a terminal
        from rich.markup import escape  # noqa: PLC0415

        self._escape = escape
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self._console.status("starting")
        self._moving = False
        self._colours: dict[str, int] = {}

    def log(self, name: str, line: str) -> None:
        """Print the line above the status line."""
        colour = self._colours.setdefault(name, _COLOURS[len(self._colours) % len(_COLOURS)])
        self._console.out(f"\x1b[{colour}m[{name}]\x1b[0m {line}", highlight=False)

    def progress(self, processes: Sequence[ProcessStatus]) -> None:
        """Bring the status line up to date; it vanishes once all are ready."""
        moving = any(each.state is not State.READY for each in processes)
        if moving:
            parts = (f"{each.name} [dim]{self._escape(_describe(each))}[/dim]" for each in processes)
            self._status.update("  ".join(parts))
        if moving != self._moving:
            (self._status.start if moving else self._status.stop)()
            self._moving = moving

    def announce(self, urls: Sequence[str], model: str) -> None:
        """Print the URLs and a command to try."""
        self.close()
        sys.stdout.write(_ready_text(urls, model) + "\n")
        sys.stdout.flush()

    def say(self, text: str) -> None:
        """Print a sentence above the status line."""
        self._console.out(text, highlight=False)

    def close(self) -> None:
        """Remove the status line."""
        if self._moving:
            self._status.stop()
            self._moving = False


def make_display(log_file: Path | None = None) -> Display:
    """Choose by where standard error leads."""
    if sys.stderr.isatty() and log_file is None:
        return TerminalDisplay()
    return LineDisplay(sys.stderr, sys.stdout, log_file=log_file)


def _describe(process: ProcessStatus) -> str:
    failed = process.state in {State.FAILED, State.WAITING} and process.message
    return f"{process.state} ({process.message})" if failed else str(process.state)


def _ready_text(urls: Sequence[str], model: str) -> str:
    """``model``: or several, with commas between them."""
    example = model.partition(", ")[0]
    lines = [f"Tokenmill serves {model} at {' and '.join(urls)}"] if urls else ["Tokenmill is up"]
    if urls:
        body = json.dumps({"model": example, "messages": [{"role": "user", "content": "Hello!"}]})
        lines += [
            "",
            f"  curl {urls[0]}/v1/chat/completions -H 'content-type: application/json' \\",
            f"    -d {shlex.quote(body)}",
            "",
        ]
    return "\n".join(lines)
