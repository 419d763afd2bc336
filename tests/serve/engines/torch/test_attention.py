"""Paged attention against attention written out, for every kind of layer and chunk."""

import math

import pytest
import torch

from tokenmill.decide.batching.types import Chunk, Sequence, SequenceRequest, StepPlan
from tokenmill.protocol.ids import RequestId
from tokenmill.serve.engines.torch.attention import AttentionKind, PagedCache, flatten

HEADS, KV_HEADS, HEAD_DIM, BLOCK_TOKENS, BLOCKS = 6, 2, 8, 4, 300
CPU = torch.device("cpu")


def written_out(query, key, value, kind: AttentionKind, start: int) -> torch.Tensor:
    """One sequence: query [length, heads, dim] from ``start`` on; key, value [context, kv_heads, dim]."""
    rows = []
    for row in range(len(query)):
        position = start + row
        low = 0 if kind.window is None else max(0, position - kind.window + 1)
        heads = []
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = key[low : position + 1, shared] @ query[row, head] * kind.scale
            if kind.softcap is not None:
                scores = kind.softcap * torch.tanh(scores / kind.softcap)
            weights = scores.exp()
            extra = math.exp(float(kind.sinks[head])) if kind.sinks is not None else 0.0
            heads.append((weights / (weights.sum() + extra)) @ value[low : position + 1, shared])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def sequence_of(name: str, tokens: int, blocks: list[int]) -> Sequence:
    request = SequenceRequest(request_id=RequestId(name), prompt=[0] * tokens, max_tokens=1)
    return Sequence(request=request, tokens=[0] * tokens, prompt_len=tokens, arrival=0.0, blocks=blocks)


@pytest.mark.parametrize(
    "kind",
    [
        AttentionKind(scale=0.3),
        AttentionKind(scale=0.3, window=5),
        AttentionKind(scale=0.3, softcap=1.5),
        AttentionKind(scale=0.3, window=9, sinks=torch.linspace(-1, 2, HEADS)),
    ],
    ids=["full", "window", "softcap", "sinks"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_each_kind_in_one_mixed_step(kind, dtype):
    cache = PagedCache(
        torch.full((4, BLOCKS, BLOCK_TOKENS, KV_HEADS * HEAD_DIM), math.nan, dtype=dtype), KV_HEADS
    )
    generator = torch.Generator().manual_seed(1)

    def tensor(tokens: int, heads: int) -> torch.Tensor:
        return torch.randn(tokens, heads, HEAD_DIM, generator=generator).to(dtype)

    # (tokens there, tokens new, blocks): decodes in a run, scattered and long, then chunks old and new.
    plans = [
        (10, 1, list(range(50, 53))),
        (11, 1, [9, 4, 30]),
        (300, 1, list(range(100, 176))),
        (299, 1, list(range(299, 224, -1))),
        (0, 1, [60]),
        (0, 7, [70, 71]),
        (6, 8, [80, 3, 81, 5]),
        (13, 9, list(range(90, 96))),
    ]
    work = []
    for index, (there, new, blocks) in enumerate(plans):
        sequence = sequence_of(str(index), there + new, blocks)
        everything = tensor(there + new, HEADS), tensor(there + new, KV_HEADS), tensor(there + new, KV_HEADS)
        if there:
            past = flatten(StepPlan(0, [Chunk(sequence, 0, there, False)], 0, 0), BLOCK_TOKENS, CPU)
            cache.attend(1, *(part[:there] for part in everything), kind, past)
        work.append((sequence, there, new, everything))
    batch = flatten(
        StepPlan(0, [Chunk(s, there, new, True) for s, there, new, _ in work], 0, 0), BLOCK_TOKENS, CPU
    )
    rows = [torch.cat([everything[part][there:] for _, there, _, everything in work]) for part in range(3)]
    got = cache.attend(1, *rows, kind, batch).float()
    expected = torch.cat(
        [
            written_out(query[there:].float(), key.float(), value.float(), kind, there)
            for _, there, _, (query, key, value) in work
        ]
    )
    tolerance = 1e-5 if dtype is torch.float32 else 3e-2
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def test_a_step_is_one_row_with_slots_by_block_table():
    first, second = sequence_of("a", 9, [5, 2, 8]), sequence_of("b", 6, [3, 4])
    first.tokens[:] = range(100, 109)
    plan = StepPlan(0, [Chunk(first, 8, 1, True), Chunk(second, 2, 3, False)], 1, 3)
    batch = flatten(plan, BLOCK_TOKENS, CPU)
    assert batch.ids.tolist() == [108, 0, 0, 0]
    assert batch.positions.tolist() == [8, 2, 3, 4]
    assert batch.slots.tolist() == [32, 14, 15, 16]
    assert [segment.run for segment in batch.segments] == [-1, 12]
    assert batch.singles == 1
