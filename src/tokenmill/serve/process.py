"""What every process of a factory does alike: say that it is ready, watch its parent, heed signals, log.

Linux and macOS. It knows neither HTTP nor engines.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import structlog

from tokenmill.spec.process import ProcessConfig


def configure_logging(config: ProcessConfig) -> None:
    """Send structlog's lines to standard error, for people or as JSON."""
    level = getattr(logging, config.log_level.upper(), logging.INFO)
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if config.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if config.log_format == "text" else "iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@contextlib.contextmanager
def run_folder(config: ProcessConfig) -> Iterator[Path]:
    """Give the folder for sockets: the configured one, or a fresh one that is removed at the end."""
    if config.run_dir:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tokenmill-") as name:
        yield Path(name)


class Readiness:
    """Tells the parent once that this process serves, or why it does not."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def ready(self, **facts: str | int) -> None:
        """Say that this process serves; ``facts`` go along (a URL, say)."""
        self._write({"ready": True, **facts})

    def failed(self, error: str, *, fatal: bool) -> None:
        """Say why not. ``fatal``: starting it again would fail again."""
        self._write({"ready": False, "error": error, "fatal": fatal})

    def _write(self, message: dict[str, object]) -> None:
        fd, self._fd = self._fd, None
        if fd is None:
            return
        # The parent may be gone or not care; that is its business.
        with contextlib.suppress(OSError):
            os.write(fd, msgspec.json.encode(message) + b"\n")
        os.close(fd)


class StopRequest:
    """Why and how this process should end. ``at_once``: nobody is left to drain for."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self.reason = ""
        self.at_once = False

    def ask(self, reason: str, *, at_once: bool = False) -> None:
        """Ask to end; asking a second time means at once."""
        self.at_once = self.at_once or at_once or self._asked.is_set()
        self.reason = self.reason or reason
        self._asked.set()

    async def wait(self) -> None:
        """Wait until somebody asks. Cancelled: nothing changes."""
        await self._asked.wait()


@contextlib.asynccontextmanager
async def stop_requests(config: ProcessConfig) -> AsyncIterator[StopRequest]:
    """Watch SIGTERM, SIGINT and the parent's pipe."""
    stop = StopRequest()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stop.ask, signal.Signals(number).name)
    if config.parent_fd is not None:
        os.set_blocking(config.parent_fd, False)
        loop.add_reader(config.parent_fd, _parent_pipe_readable, config.parent_fd, stop)
    try:
        yield stop
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        if config.parent_fd is not None:
            loop.remove_reader(config.parent_fd)


def _parent_pipe_readable(fd: int, stop: StopRequest) -> None:
    try:
        data = os.read(fd, 4096)
    except BlockingIOError:
        return
    except OSError:
        data = b""
    if not data:
        asyncio.get_running_loop().remove_reader(fd)
        stop.ask("the parent process is gone", at_once=True)


def settle() -> None:
    """Give back what only starting needed, and keep the collector from looking at the rest again."""
    gc.collect()
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):  # glibc's alone: others give back by themselves
        ctypes.CDLL("libc.so.6").malloc_trim(0)
