"""Launches to compile: each calls a launcher with tensors that hold nothing, of the sizes of an 8 B model."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

from kernels.attention_layout import AttentionLayout, Segment
from kernels.gpu.attention.backward import attention_backward_triton
from kernels.gpu.attention.forward import attention_triton
from kernels.gpu.linears.fp8_linear import fp8_linear_triton
from kernels.gpu.linears.int4_linear import int4_linear_triton
from kernels.gpu.linears.int8_linear import int8_linear_triton
from kernels.gpu.linears.linear import linear_triton
from kernels.gpu.paged_kv import write_kv_triton
from kernels.gpu.rms_norm import rms_norm_backward_triton, rms_norm_triton
from kernels.gpu.rope import rope_triton
from kernels.gpu.swiglu import swiglu_backward_triton, swiglu_triton
from kernels.gpu.vocabulary.grad_logits import grad_logits_triton
from kernels.gpu.vocabulary.linear_logprobs import linear_logprobs_triton
from kernels.gpu.vocabulary.philox import philox_uniform_triton
from kernels.gpu.vocabulary.sample import lm_head_sample_triton, sample_triton
from kernels.gpu.vocabulary.sums import vocab_sums_triton

__all__ = ["Launch", "all_launches"]

TOKENS, HIDDEN, INTERMEDIATE, VOCABULARY = 4096, 4096, 14336, 152064
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE, BLOCKS = 32, 8, 128, 16, 1024
WIDE = torch.bfloat16


@dataclass(frozen=True, kw_only=True)
class Launch:
    name: str
    run: Callable[[], object]
    matrix: Mapping[str, str] = field(default_factory=dict)
    """Kernels that must use the matrix instruction of a type of operands: "bf16", "int8" or "fp8"."""
    missing_on: tuple[str, ...] = ()
    """Targets that lack a type the kernel needs."""


def empty(*shape: int, dtype: torch.dtype = WIDE) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def all_launches() -> Iterator[Launch]:
    yield from _elementwise()
    yield from _cache_writes()
    yield from _vocabulary()
    yield from _attention()
    yield from _linears()


def _elementwise() -> Iterator[Launch]:
    rows, weight, inverse = (
        empty(TOKENS, HIDDEN),
        empty(HIDDEN),
        empty(TOKENS, 1, dtype=torch.float32),
    )
    yield Launch(name="rms_norm", run=lambda: rms_norm_triton(rows, weight, eps=1e-6))
    yield Launch(
        name="rms_norm_residual", run=lambda: rms_norm_triton(rows, weight, eps=1e-6, residual=rows)
    )
    yield Launch(
        name="rms_norm_backward",
        run=lambda: rms_norm_backward_triton(rows, rows, weight, inverse, grad_sum=rows),
    )
    qkv, head_weight = empty(TOKENS, HEADS + 2 * KV_HEADS, HEAD_DIM), empty(HEAD_DIM)
    yield Launch(
        name="head_norm", run=lambda: rms_norm_triton(qkv[:, :HEADS], head_weight, eps=1e-6)
    )
    cos_sin = empty(TOKENS, HEAD_DIM, dtype=torch.float32)
    yield Launch(name="rope", run=lambda: rope_triton(qkv[:, :HEADS], cos_sin))
    gate_up = empty(TOKENS, 2 * INTERMEDIATE)
    yield Launch(name="swiglu", run=lambda: swiglu_triton(gate_up))
    yield Launch(
        name="swiglu_backward",
        run=lambda: swiglu_backward_triton(empty(TOKENS, INTERMEDIATE), gate_up),
    )


def _cache_writes() -> Iterator[Launch]:
    qkv = empty(TOKENS, HEADS + 2 * KV_HEADS, HEAD_DIM)
    k, v = qkv[:, HEADS : HEADS + KV_HEADS], qkv[:, HEADS + KV_HEADS :]
    places = empty(TOKENS, dtype=torch.int64), empty(TOKENS, dtype=torch.int64)
    shape = (BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM)

    def write(dtype: torch.dtype) -> None:
        keys, values = empty(*shape, dtype=dtype), empty(*shape, dtype=dtype)
        is_plain = dtype is WIDE
        scale = empty(*shape[:3], dtype=torch.float32)
        write_kv_triton(k, v, *places, keys, values, None if is_plain else (scale, scale))

    yield Launch(name="write_kv", run=lambda: write(WIDE))
    yield Launch(name="write_kv_int8", run=lambda: write(torch.int8))
    yield Launch(
        name="write_kv_fp8", run=lambda: write(torch.float8_e4m3fn), missing_on=("80", "gfx942")
    )


def _vocabulary() -> Iterator[Launch]:
    hidden, weight = empty(TOKENS, HIDDEN), empty(VOCABULARY, HIDDEN)
    tokens = empty(TOKENS, dtype=torch.int64)
    per_row = empty(TOKENS, dtype=torch.float32)
    yield Launch(
        name="linear_logprobs",
        run=lambda: linear_logprobs_triton(hidden, weight, tokens, per_row),
        matrix={"_head_stats_kernel": "bf16"},
    )
    yield Launch(
        name="grad_logits",
        run=lambda: grad_logits_triton(hidden, weight, per_row, tokens, per_row, per_row, per_row),
        matrix={"_grad_logits_kernel": "bf16"},
    )
    rows = slice(0, 256)
    yield Launch(
        name="lm_head_sample",
        run=lambda: lm_head_sample_triton(hidden[rows], weight, per_row[rows], per_row[rows]),
        matrix={"_head_stats_kernel": "bf16"},
    )
    logits = empty(256, VOCABULARY, dtype=torch.float32)

    def sample() -> None:
        maximum, cumulative, _ = vocab_sums_triton(logits, per_row[rows], with_moment=False)
        sample_triton(logits, per_row[rows], maximum, cumulative, per_row[rows])

    yield Launch(name="sample", run=sample)
    yield Launch(
        name="philox",
        run=lambda: philox_uniform_triton(empty(256, 3, dtype=torch.int64), tokens[rows]),
    )


def _layout(keys_per_index: int, num_queries: int) -> AttentionLayout:
    """One sequence of two key blocks."""
    last = 128
    key_index = range(last // keys_per_index)
    segment = Segment(
        first_row=0, num_queries=num_queries, first_position=last - num_queries, key_index=key_index
    )
    return AttentionLayout((segment,), last, keys_per_index, torch.device("meta"))


def _attention() -> Iterator[Launch]:
    qkv = empty(128, HEADS + 2 * KV_HEADS, HEAD_DIM)
    q, k, v = qkv.split([HEADS, KV_HEADS, KV_HEADS], dim=1)
    matrix = {"_attention_fwd_kernel": "bf16"}
    yield Launch(
        name="attention_packed",
        run=lambda: attention_triton(q, k, v, _layout(1, 128), blocks_per_program=0),
        matrix=matrix,
    )
    out, logsumexp = empty(128, HEADS, HEAD_DIM), empty(128, HEADS, dtype=torch.float32)
    yield Launch(
        name="attention_backward",
        run=lambda: attention_backward_triton(out, q, k, v, out, logsumexp, _layout(1, 128)),
        matrix={"_grad_queries_kernel": "bf16", "_grad_keys_kernel": "bf16"},
    )
    shape = (BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM)

    def decode(dtype: torch.dtype, split: int) -> None:
        cache, scale = empty(*shape, dtype=dtype), empty(*shape[:3], dtype=torch.float32)
        scales = None if dtype is WIDE else (scale, scale)
        layout = _layout(BLOCK_SIZE, 1)
        attention_triton(q, cache, cache, layout, scales=scales, blocks_per_program=split)

    yield Launch(name="attention_paged", run=lambda: decode(WIDE, 0), matrix=matrix)
    yield Launch(name="attention_split", run=lambda: decode(WIDE, 1), matrix=matrix)
    yield Launch(name="attention_int8", run=lambda: decode(torch.int8, 0), matrix=matrix)
    yield Launch(
        name="attention_fp8",
        run=lambda: decode(torch.float8_e4m3fn, 0),
        matrix=matrix,
        missing_on=("80", "gfx942"),
    )


def _linears() -> Iterator[Launch]:
    x, weight, bias = empty(TOKENS, HIDDEN), empty(HIDDEN, HIDDEN), empty(HIDDEN)
    matrix = {"_linear_kernel": "bf16", "_linear_descriptor_kernel": "bf16"}
    yield Launch(name="linear", run=lambda: linear_triton(x, weight, bias), matrix=matrix)
    head = empty(VOCABULARY, HIDDEN)
    yield Launch(
        name="lm_head",
        run=lambda: linear_triton(x, head, out_dtype=torch.float32),
        matrix=matrix,
    )
    integers, scale = empty(HIDDEN, HIDDEN, dtype=torch.int8), empty(HIDDEN, dtype=torch.float32)
    yield Launch(
        name="int8_linear",
        run=lambda: int8_linear_triton(x, integers, scale, bias, levels=4128, ratio=6 / 127),
        matrix={"_int8_linear_kernel": "int8"},
    )
    numbers = empty(HIDDEN, HIDDEN, dtype=torch.float8_e4m3fn)
    scales = empty(HIDDEN // 128, HIDDEN // 128, dtype=torch.float32)
    yield Launch(
        name="fp8_linear",
        run=lambda: fp8_linear_triton(x, numbers, scales, bias),
        matrix={"_fp8_linear_kernel": "fp8"},
        missing_on=("80", "gfx942"),
    )
    packed = empty(HIDDEN, HIDDEN // 2, dtype=torch.uint8)
    group_scales = empty(HIDDEN, HIDDEN // 128, dtype=torch.float32)
    yield Launch(
        name="int4_linear",
        run=lambda: int4_linear_triton(x, packed, group_scales, bias),
        matrix={"_int4_linear_kernel": "bf16"},
    )
