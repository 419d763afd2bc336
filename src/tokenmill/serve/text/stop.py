"""Stop strings in a text that arrives in pieces.

Knows characters only: not tokens, not requests. The result does not depend on how the text was cut into
pieces, so that a burst of tokens and the same tokens one by one end a stream at the same character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenmill.errors import BadRequest


class StopStrings:
    """Passes text through until the first stop string is complete.

    First is the one that ends first; of those that end at one character, the longest. ``hit`` is that
    string, None until then. Text that may be the beginning of a stop string is held back: at most the
    longest stop's length less one. The work is constant a character (Aho and Corasick 1975), and text
    without any stop's first character is passed at the speed of a regular expression. Without stops
    ``push`` is the identity.

    Raises:
        BadRequest: a stop string is empty.
    """

    __slots__ = ("_depth", "_fail", "_found", "_include", "_next", "_node", "_opening", "_spelled", "hit")

    def __init__(self, stops: Sequence[str], *, include_in_output: bool = False) -> None:
        self.hit: str | None = None
        self._include = include_in_output
        self._node = 0
        self._opening: re.Pattern[str] | None = None
        if stops:
            self._build(stops)

    def push(self, text: str) -> str:
        """Take the next text and return what can be sent; nothing more once there was a hit."""
        if self._opening is None:
            return text
        if self.hit is not None:
            return ""
        before, start = self._node, 0
        if not before:
            opening = self._opening.search(text)
            if opening is None:
                return text
            start = opening.start()
        end = self._scan(text, start)
        held = self._depth[before]
        self.hit = self._found[self._node]
        if self.hit is None:
            safe = held + end - self._depth[self._node]
        else:
            safe = held + end - (0 if self._include else len(self.hit))
        if safe <= held:
            return self._spelled[before][:safe]
        return self._spelled[before][:held] + text[: safe - held]

    def finish(self) -> str:
        """Return the text held back: there is no more to come."""
        if self._opening is None or self.hit is not None:
            return ""
        held = self._spelled[self._node][: self._depth[self._node]]
        self._node = 0
        return held

    def _scan(self, text: str, at: int) -> int:
        """Walk from ``at`` to the end of ``text`` or of the first stop string; return where that is."""
        assert self._opening is not None
        node, steps, fail, found = self._node, self._next, self._fail, self._found
        size = len(text)
        while at < size:
            character = text[at]
            while node and character not in steps[node]:
                node = fail[node]
            node = steps[node].get(character, 0)
            at += 1
            if found[node] is not None:
                break
            if not node:
                opening = self._opening.search(text, at)
                at = opening.start() if opening else size
        self._node = node
        return at

    def _build(self, stops: Sequence[str]) -> None:
        """Make the automaton: a node for each beginning of a stop string, 0 for none. The text held back is
        always the beginning that the present node stands for, so it need not be kept."""
        self._next: list[dict[str, int]] = [{}]
        self._spelled = [""]
        """A stop string that has the node's beginning."""
        self._found: list[str | None] = [None]
        """The longest stop string that ends at a node."""
        for at, stop in enumerate(stops):
            if not stop:
                raise BadRequest("a stop string must not be empty", param=f"stop[{at}]")
            node = 0
            for character in stop:
                node = self._next[node].setdefault(character, len(self._next))
                if node == len(self._next):
                    self._next.append({})
                    self._found.append(None)
                    self._spelled.append(stop)
            self._found[node] = stop
        self._link()
        self._opening = re.compile("[" + "".join(map(re.escape, self._next[0])) + "]")

    def _link(self) -> None:
        """Give each node the longest other beginning that it ends with, shorter nodes first."""
        self._fail = [0] * len(self._next)
        self._depth = [0] * len(self._next)
        order = [0]
        for node in order:
            for character, child in self._next[node].items():
                order.append(child)
                self._depth[child] = self._depth[node] + 1
                back = self._fail[node]
                while back and character not in self._next[back]:
                    back = self._fail[back]
                if node:
                    self._fail[child] = self._next[back].get(character, 0)
                if self._found[child] is None:
                    self._found[child] = self._found[self._fail[child]]
