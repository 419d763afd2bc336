"""What the scheduler's side of the connector tells the workers' side with each step.

Plain data: it may cross to another process, pickled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokenmill.serve.transfer.exports import ExportKey


@dataclass(frozen=True, slots=True)
class Give:
    """This step completes a prompt: offer its blocks. ``groups``: an export's key and blocks for each group
    of layers that has any."""

    request_id: str
    groups: tuple[tuple[ExportKey, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Pull:
    """One group's share of a handoff: into ``blocks``, of which the first ``skipped`` are there already."""

    descriptor: bytes
    blocks: tuple[int, ...]
    skipped: int


@dataclass(frozen=True, slots=True)
class Take:
    """Fetch blocks made elsewhere. ``ranks``: the pulls of each worker. ``waited_for``: the scheduler has to
    hear the outcome; else the giver is only to be told that it may have its blocks back. ``problem``: why it
    cannot work, where that is known."""

    request_id: str
    ranks: tuple[tuple[Pull, ...], ...] = ()
    waited_for: bool = True
    problem: str = ""


@dataclass(slots=True)
class Orders:
    """All of one step. ``withdrawn``: what was to be given is not, and nobody was told of it. ``dropped``:
    what is being taken is not wanted any more."""

    gives: list[Give] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    takes: list[Take] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
