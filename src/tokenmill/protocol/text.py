"""Frontend <-> worker, where the worker's engine takes text: what is asked, and what comes back.

A stream of such a request carries any number of ``TextPieces`` and ends with exactly one ``TextFinished`` or
``Failed``. One stream carries all choices of a client's request. JSON is carried unread wherever nobody has
to know it, so that what a client and a server have agreed on passes through.
"""

from __future__ import annotations

import msgspec


class TextRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a text engine is asked.

    ``path``: of the API below ``/v1``, "chat/completions" or "completions". ``fields``: a JSON object, the
    client's own fields without those that are named here; never empty. ``model``: what the server calls it,
    empty: the worker's own. ``stream``: piece by piece, else all at once. ``tokens``: the prompt's length,
    estimated.
    """

    path: str
    fields: bytes
    model: str = ""
    stream: bool = False
    tokens: int = 0


class TextUsage(msgspec.Struct, frozen=True, array_like=True):
    """Token counts as the server tells them; ``told``: its whole JSON object."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    told: bytes


class TextPieces(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """New pieces of an answer: each the JSON array of "choices" of one event, or of the whole answer.

    ``index``: number of the first one, counted from 0 in a stream.
    """

    index: int
    pieces: list[bytes]


class TextFinished(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The last item, with the last pieces if there are any.

    ``reason``: why the first choice ended, in the server's word. ``usage``: None where the server does not
    tell.
    """

    index: int
    pieces: list[bytes]
    reason: str
    usage: TextUsage | None = None


def join_text(earlier: TextPieces, later: object) -> TextPieces | TextFinished | None:
    """Return one item that says what both do in turn, or None where there is none."""
    if not isinstance(later, TextPieces | TextFinished):
        return None
    if later.pieces and earlier.index + len(earlier.pieces) != later.index:
        return None
    pieces = [*earlier.pieces, *later.pieces]
    if isinstance(later, TextPieces):
        return TextPieces(earlier.index, pieces)
    return TextFinished(earlier.index, pieces, later.reason, later.usage)
