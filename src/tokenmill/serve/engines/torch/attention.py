"""Attention over a paged KV cache: the one place that knows how a step's tokens meet earlier ones.

A step's chunks lie flattened in one row. Each token's key and value go into its slot (block * block_tokens
+ offset) of the layer's two planes; each chunk then attends to its own sequence's slots. A sequence whose
blocks are consecutive is read in place, others are gathered. Exactly as many tokens are read as the sequence
has, so that what an earlier owner left behind in a block, NaN included, is never touched. Knows no sampling.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention

from tokenmill.decide.batching.types import StepPlan

_WIDEN_FROM = 256
"""From this context length on, a decode in bfloat16 on a CPU is faster on a float32 copy of the context: for
the few rows of such a query the bfloat16 kernel takes twice the time of the copy and the float32 kernel."""


class AttentionKind(NamedTuple):
    """How one layer attends.

    ``scale``: on the dot products. ``window``: most tokens a query sees, itself included; None is all.
    ``softcap``: logits become softcap * tanh(logits / softcap). ``sinks``: [heads], one logit a head that
    takes part in the softmax and has no value.
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None


class Segment(NamedTuple):
    """One chunk. Its tokens are rows ``first .. first + length`` of the step and positions ``start .. end``
    of its sequence. ``blocks``: the block table up to ``end``; ``run``: the slot of position 0 if the blocks
    are consecutive, else -1."""

    first: int
    length: int
    start: int
    end: int
    blocks: list[int]
    run: int


class StepBatch:
    """A plan, flattened: ``ids``, ``positions`` and ``slots`` are int64 [tokens] on the device.

    ``singles``: so many segments at the beginning have one token.
    """

    __slots__ = ("gathers", "ids", "masks", "positions", "segments", "singles", "slots")

    def __init__(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, segments: list[Segment]
    ) -> None:
        self.ids = ids
        self.positions = positions
        self.slots = slots
        self.segments = segments
        lengths = [segment.length for segment in segments]
        self.singles = next((n for n, length in enumerate(lengths) if length > 1), len(lengths))
        # Made by the first layer that needs them, used by all; they live as long as the step.
        self.masks: dict[tuple[int, int | None], torch.Tensor] = {}
        self.gathers: dict[tuple[int, int], torch.Tensor] = {}


def flatten(plan: StepPlan, block_tokens: int, device: torch.device) -> StepBatch:
    """Lay a plan's chunks into one row, in the plan's order."""
    ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    segments: list[Segment] = []
    for chunk in plan.chunks:
        start, end = chunk.start, chunk.start + chunk.length
        table = chunk.sequence.blocks[: -(-end // block_tokens)]
        first_block = table[0]
        consecutive = table[-1] - first_block == len(table) - 1 and (
            len(table) < 3 or table == list(range(first_block, first_block + len(table)))
        )
        run = first_block * block_tokens if consecutive else -1
        segments.append(Segment(len(ids), chunk.length, start, end, table, run))
        ids += chunk.sequence.tokens[start:end]
        positions += range(start, end)
        if consecutive:
            slots += range(run + start, run + end)
        else:
            slots += [table[p // block_tokens] * block_tokens + p % block_tokens for p in range(start, end)]
    table_of_all = torch.tensor([ids, positions, slots], dtype=torch.int64).to(device)
    return StepBatch(table_of_all[0], table_of_all[1], table_of_all[2], segments)


class PagedCache:
    """The KV memory as tensors, two planes a layer: 2 * layer holds keys, 2 * layer + 1 values.

    ``storage``: [planes, blocks, block_tokens, kv_heads * head_dim].
    """

    def __init__(self, storage: torch.Tensor, kv_heads: int) -> None:
        planes, blocks, block_tokens, row = storage.shape
        self._block_tokens = block_tokens
        by_slot = storage.view(planes, blocks * block_tokens, kv_heads, row // kv_heads)
        self._slots = list(by_slot.unbind(0))
        self._by_head = [plane.transpose(0, 1).unsqueeze(0) for plane in self._slots]
        self._blocks = list(storage.view(planes, blocks, block_tokens * row).unbind(0))
        self._shape = (-1, kv_heads, row // kv_heads)
        self._widen = storage.device.type == "cpu" and storage.dtype is torch.bfloat16

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kind: AttentionKind,
        batch: StepBatch,
    ) -> torch.Tensor:
        """Store a step's keys and values and attend.

        ``query``: [tokens, heads, head_dim]; ``key``, ``value``: [tokens, kv_heads, head_dim].
        Returns [tokens, heads * head_dim].
        """
        self._slots[2 * layer].index_copy_(0, batch.slots, key)
        self._slots[2 * layer + 1].index_copy_(0, batch.slots, value)
        _, heads, head_dim = query.shape
        kv_heads = key.shape[1]
        singles = batch.singles
        outputs: list[torch.Tensor] = []
        if kind.sinks is not None or kind.softcap is not None:
            singles = 0
        elif singles:
            # The heads that share a key stand as rows of one query: nothing to mask, nothing to repeat.
            grouped = query[:singles].view(singles, 1, kv_heads, heads // kv_heads, head_dim)
            attended = self._decode(layer, grouped, kind, batch)
            outputs.append(attended.view(singles, heads * head_dim))
        for index in range(singles, len(batch.segments)):
            segment = batch.segments[index]
            rows = slice(segment.first, segment.first + segment.length)
            out = self._attend_chunk(layer, index, query[rows], key[rows], value[rows], kind, batch)
            outputs.append(out.squeeze(0).transpose(0, 1).reshape(segment.length, heads * head_dim))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _decode(
        self, layer: int, grouped: torch.Tensor, kind: AttentionKind, batch: StepBatch
    ) -> torch.Tensor:
        """One token a sequence: ``grouped`` [singles, 1, kv_heads, group, head_dim], result likewise."""
        outputs: list[torch.Tensor] = []
        for index, (query, segment) in enumerate(zip(grouped.unbind(0), batch.segments, strict=False)):
            keys, values = self._context(layer, batch, index, kind.window)
            if self._widen and segment.end >= _WIDEN_FROM:
                out = scaled_dot_product_attention(
                    query.float(), keys.float(), values.float(), scale=kind.scale
                ).to(query.dtype)
            else:
                out = scaled_dot_product_attention(query, keys, values, scale=kind.scale)
            outputs.append(out)
        return torch.cat(outputs)

    def _attend_chunk(
        self,
        layer: int,
        index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kind: AttentionKind,
        batch: StepBatch,
    ) -> torch.Tensor:
        """One chunk of any length; returns [1, heads, length, head_dim]."""
        segment = batch.segments[index]
        queries = query.transpose(0, 1).unsqueeze(0)
        groups = query.shape[1] != key.shape[1]
        plain = kind.sinks is None and kind.softcap is None
        if plain and segment.start == 0 and (kind.window is None or segment.length <= kind.window):
            keys, values = key.transpose(0, 1).unsqueeze(0), value.transpose(0, 1).unsqueeze(0)
            return scaled_dot_product_attention(
                queries, keys, values, is_causal=True, scale=kind.scale, enable_gqa=groups
            )
        keys, values = self._context(layer, batch, index, kind.window)
        mask = _mask(batch, index, kind.window)
        if not plain:
            return _attend_with_extras(queries, keys, values, mask, kind)
        return scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=kind.scale, enable_gqa=groups
        )

    def _context(
        self, layer: int, batch: StepBatch, index: int, window: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values that a segment's queries may see, [1, kv_heads, context, head_dim]."""
        segment = batch.segments[index]
        low = _lowest(segment, window)
        length = segment.end - low
        if segment.run >= 0:
            start = segment.run + low
            return (
                self._by_head[2 * layer].narrow(2, start, length),
                self._by_head[2 * layer + 1].narrow(2, start, length),
            )
        first_block = low // self._block_tokens
        wanted = batch.gathers.get((index, first_block))
        if wanted is None:
            wanted = torch.tensor(segment.blocks[first_block:], device=batch.slots.device)
            batch.gathers[index, first_block] = wanted
        start = low - first_block * self._block_tokens
        keys, values = (
            self._blocks[plane].index_select(0, wanted).view(self._shape).narrow(0, start, length)
            for plane in (2 * layer, 2 * layer + 1)
        )
        return keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)


def _lowest(segment: Segment, window: int | None) -> int:
    """The lowest position that a segment's first query sees."""
    return 0 if window is None else max(0, segment.start - window + 1)


def _mask(batch: StepBatch, index: int, window: int | None) -> torch.Tensor:
    """Bool [length, context], true where a query may look."""
    segment = batch.segments[index]
    mask = batch.masks.get((index, window))
    if mask is None:
        queries = batch.positions[segment.first : segment.first + segment.length, None]
        keys = torch.arange(_lowest(segment, window), segment.end, device=queries.device)
        mask = keys <= queries
        if window is not None:
            mask &= keys > queries - window
        batch.masks[index, window] = mask
    return mask


def _attend_with_extras(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, kind: AttentionKind
) -> torch.Tensor:
    """Attention written out, for what the fused kernels lack: sinks and soft-capped logits.

    ``query``: [1, heads, length, head_dim]; ``key``, ``value``: [1, kv_heads, context, head_dim].
    """
    _, heads, length, head_dim = query.shape
    kv_heads, context = key.shape[1], key.shape[2]
    grouped = query.reshape(kv_heads, heads // kv_heads * length, head_dim)
    scores = torch.bmm(grouped, key[0].transpose(1, 2)).float() * kind.scale
    scores = scores.view(heads, length, context)
    if kind.softcap is not None:
        scores = torch.tanh(scores / kind.softcap) * kind.softcap
    scores = scores.masked_fill(~mask, -torch.inf)
    if kind.sinks is not None:
        sinks = kind.sinks.float().view(heads, 1, 1).expand(heads, length, 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = scores.softmax(-1)[..., :context].to(value.dtype)
    out = torch.bmm(weights.reshape(kv_heads, heads // kv_heads * length, context), value[0])
    return out.view(1, heads, length, head_dim)
