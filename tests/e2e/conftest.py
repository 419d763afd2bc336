"""Factories of real processes, started as a user starts them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tokenmill.testing.running_factory import RunningFactory

Serve = Callable[..., RunningFactory]


@contextlib.contextmanager
def _serving(folders: pytest.TempPathFactory) -> Iterator[Serve]:
    running: list[RunningFactory] = []

    def start(*flags: str) -> RunningFactory:
        factory = RunningFactory.start(folders.mktemp("serve"), *flags)
        running.append(factory)
        factory.wait_ready()
        return factory

    try:
        yield start
    finally:
        statuses = [factory.stop() for factory in running]
    assert all(status == 0 for status in statuses), statuses


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start factories with ``tokenmill serve`` flags; all are stopped at the test's end."""
    with _serving(tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="module")
def serve_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Like ``serve``, for factories that all tests of a module use."""
    with _serving(tmp_path_factory) as start:
        yield start
