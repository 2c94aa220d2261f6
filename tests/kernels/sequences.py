"""Sequences for tests of attention, and the reference on them."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from kernels.attention import Segment, attention_reference
from tests.kernels.accuracy import randn

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 4, 2, 16


def make_qkv(num_rows, *, heads=NUM_HEADS, kv_heads=NUM_KV_HEADS, dtype=torch.float32):
    shapes = [(num_rows, n, HEAD_DIM) for n in (heads, kv_heads, kv_heads)]
    return [randn(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


def whole_sequences(lengths: Sequence[int]) -> list[Segment]:
    """One after the other, each attending to its own rows."""
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return [
        Segment(first_row=a, num_queries=b - a, first_position=0, key_index=range(a, b))
        for a, b in pairwise(ends)
    ]


def reference(q, k, v, segments: Sequence[Segment]) -> torch.Tensor:
    """`attention_reference` of each segment's whole sequence, the queries it does not have as zeros."""
    out = torch.zeros_like(q)
    for s in segments:
        last = s.first_position + s.num_queries
        keys = torch.tensor(list(s.key_index[:last]))
        rows = slice(s.first_row, s.first_row + s.num_queries)
        queries = torch.cat([q.new_zeros(s.first_position, *q.shape[1:]), q[rows]])
        out[rows] = attention_reference(queries, k[keys], v[keys])[s.first_position :]
    return out


def shared_prompt() -> tuple[list[Segment], int]:
    """Completions of 5, 64, 1 and 63 tokens of one prompt of 70, whose rows lie between theirs."""
    prompt = range(69, 139)
    completions = [range(0, 5), range(5, 69), range(139, 140), range(140, 203)]
    segments = [Segment(first_row=69, num_queries=70, first_position=0, key_index=prompt)]
    segments += [
        Segment(
            first_row=rows.start,
            num_queries=len(rows),
            first_position=70,
            key_index=[*prompt, *rows],
        )
        for rows in completions
    ]
    return segments, 203
