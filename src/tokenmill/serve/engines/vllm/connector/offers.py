"""An offer: what goes from the giver's answer to the taker's request as ``kv_transfer_params``.

Nobody between them reads it. It must not hold ``do_remote_prefill``, vLLM's own word for such a request: a
taker with another connector would try to make sense of it, and vLLM ends when that fails.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

KEY = "tokenmill"
VERSION = 1


class GroupOffer(msgspec.Struct, frozen=True):
    """One group's blocks, from place ``first`` of its block table on. ``descriptors``: one a rank."""

    first: int
    blocks: int
    descriptors: list[bytes]


class Offer(msgspec.Struct, frozen=True):
    """``fingerprint``: equal on two engines exactly if they can read each other's pages. ``tokens``: of the
    prompt, so many are in the blocks. ``groups``: empty ones too."""

    version: int
    fingerprint: str
    prompt_tokens: int
    tokens: int
    groups: list[GroupOffer]


def to_params(offer: Offer) -> dict[str, object]:
    """Return what goes into the answer: JSON types only."""
    return {KEY: msgspec.to_builtins(offer)}


def asks_for_offer(params: Mapping[str, object] | None) -> bool:
    """Whether a request is to be decoded elsewhere."""
    return bool(params and params.get("do_remote_decode"))


def brings_offer(params: Mapping[str, object] | None) -> bool:
    """Whether a request says that its prompt was computed elsewhere, be it by whichever connector."""
    return bool(params and (KEY in params or params.get("do_remote_prefill")))


def read_params(params: Mapping[str, object], fingerprint: str) -> Offer | str:
    """Return the offer in a request, or why it cannot be taken, with the fix."""
    if KEY not in params:
        return "it was made by another KV connector: give both stages the same kv_connector"
    try:
        offer = msgspec.convert(params[KEY], Offer)
    except msgspec.ValidationError as error:
        return f"its offer cannot be read ({error}): run the same release on both sides"
    if offer.version != VERSION:
        return f"its offer has version {offer.version}, not {VERSION}: run the same release on both sides"
    if offer.fingerprint != fingerprint:
        return (
            f"its cache is laid out in another way ({offer.fingerprint}, here {fingerprint}): give both "
            "stages the same vLLM, model, dtype, block size and parallelism"
        )
    return offer
