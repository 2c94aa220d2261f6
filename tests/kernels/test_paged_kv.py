"""The KV cache in 8 bits; the plain one is tested with attention."""

import math

import pytest
import torch

from kernels.attention import PagedKV, Segment, paged_attention, paged_layout
from kernels.paged_kv import cache_lanes
from tests.kernels.accuracy import randn

BLOCKS, HEADS, BLOCK_SIZE, DIM = 5, 2, 16, 24
# the last block's slots are never written
PLACES = torch.tensor([3, 3, 0, 2, 3, 1]), torch.tensor([0, 15, 7, 4, 2, 15])


def int8_cache(blocks: int = BLOCKS, dim: int = DIM) -> PagedKV:
    return PagedKV.zeros(
        (blocks, HEADS, BLOCK_SIZE, dim),
        dtype=torch.float32,
        is_int8=True,
        make=lambda shape, dtype: torch.zeros(shape, dtype=dtype),
    )


def tensors(cache: PagedKV) -> list[torch.Tensor]:
    assert cache.scales is not None
    return [cache.keys, cache.values, *cache.scales]


def written(k: torch.Tensor, v: torch.Tensor) -> PagedKV:
    cache = int8_cache()
    cache.write(k, v, *PLACES)
    return cache


def test_what_is_read_is_within_half_a_step_of_what_was_written():
    k, v = randn(6, HEADS, DIM) * 40, randn(6, HEADS, DIM, seed=1)
    read = written(k, v).read(torch.arange(BLOCKS), torch.float32)
    blocks, offsets = PLACES
    for stored, rows in zip(read, (k, v), strict=True):
        step = rows.abs().amax(-1, keepdim=True) / 127
        assert bool(((stored[blocks, :, offsets] - rows).abs() <= step * 0.501).all())
        assert not stored[4].any(), "nothing was written there"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_token_that_is_not_finite_stays_so_and_reaches_no_other(bad):
    k, v = randn(6, HEADS, DIM), randn(6, HEADS, DIM, seed=1)
    good = written(k, v).read(torch.arange(BLOCKS), torch.float32)[0]
    k[3, 1, 5] = bad
    got = written(k, v).read(torch.arange(BLOCKS), torch.float32)[0]
    block, offset = int(PLACES[0][3]), int(PLACES[1][3])
    assert bool(got[block, 1, offset].isnan().all())
    got[block, 1, offset] = good[block, 1, offset]
    assert torch.equal(got, good)


@pytest.mark.parametrize("dim", [8, 24, 64, 256])
def test_attention_over_it_is_bitwise_that_over_the_floats_it_stands_for(either_path, dim):
    # 150 keys: past two key blocks; queries of a chunk, and one that decodes
    k, v, q = randn(150, HEADS, dim), randn(150, HEADS, dim, seed=1), randn(12, 6, dim, seed=2)
    table = torch.randperm(11, generator=torch.Generator().manual_seed(0))[:10]
    cache, positions = int8_cache(11, dim), torch.arange(150)
    cache.write(k, v, table[positions // BLOCK_SIZE], positions % BLOCK_SIZE)
    segments = [
        Segment(first_row=0, num_queries=11, first_position=60, key_index=table.tolist()),
        Segment(first_row=11, num_queries=1, first_position=149, key_index=table.tolist()),
    ]
    layout = paged_layout(segments, num_rows=12, block_size=BLOCK_SIZE)
    keys, values = cache.read(torch.arange(11), torch.float32)
    floats = PagedKV(keys=keys.contiguous(), values=values.contiguous())
    got = paged_attention(q, cache, layout)
    assert torch.equal(got, paged_attention(q, floats, layout))
    assert bool((got[11] != paged_attention(q, cache, layout)[0]).any())


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_interleaved_rows_are_read_as_they_were_written(dtype, lanes):
    shape = (BLOCKS, HEADS, BLOCK_SIZE, DIM)
    k, v = randn(6, HEADS, DIM).to(dtype), randn(6, HEADS, DIM, seed=1).to(dtype)
    caches = [
        PagedKV(
            keys=torch.zeros(shape, dtype=dtype), values=torch.zeros(shape, dtype=dtype), lanes=n
        )
        for n in (1, lanes)
    ]
    for cache in caches:
        cache.write(k, v, *PLACES)
    every = torch.arange(BLOCKS)
    plain, interleaved = (cache.read(every, dtype) for cache in caches)
    for rows, same_rows in zip(plain, interleaved, strict=True):
        assert torch.equal(rows, same_rows)
    assert not torch.equal(caches[0].keys, caches[1].keys)


@pytest.mark.parametrize("dim", [8, 24, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_has_the_same_bits_over_interleaved_rows(dtype, dim):
    size = 16
    lanes = cache_lanes(
        dtype,
        torch.device("cpu"),
        num_heads=6,
        num_kv_heads=HEADS,
        head_dim=dim,
        block_size=size,
    )
    k, v, q = (
        randn(*s, seed=i).to(dtype) for i, s in enumerate([(83, HEADS, dim)] * 2 + [(12, 6, dim)])
    )
    table = torch.randperm(7, generator=torch.Generator().manual_seed(0))[:6]
    segments = [
        Segment(first_row=0, num_queries=11, first_position=60, key_index=table.tolist()),
        Segment(first_row=11, num_queries=1, first_position=82, key_index=table.tolist()),
    ]
    layout = paged_layout(segments, num_rows=12, block_size=size)
    outputs = []
    for n in (1, lanes):
        shape = (7, HEADS, size, dim)
        # NaN in what nobody wrote: 83 keys end in the middle of a place, a panel and a block
        cache = PagedKV(
            keys=torch.full(shape, math.nan, dtype=dtype),
            values=torch.full(shape, math.nan, dtype=dtype),
            lanes=n,
        )
        cache.write(k, v, table[torch.arange(83) // size], torch.arange(83) % size)
        outputs.append(paged_attention(q, cache, layout))
    assert torch.equal(outputs[0], outputs[1])
    assert bool(outputs[0].isfinite().all())


def test_blocks_are_copied_and_cleared_with_their_scales():
    cache = written(randn(6, HEADS, DIM), randn(6, HEADS, DIM, seed=1))
    cache.copy_blocks(torch.tensor([3]), torch.tensor([4]))
    for tensor in tensors(cache):
        assert torch.equal(tensor[4], tensor[3])
        assert bool(tensor[4].any())
    cache.clear_blocks(torch.tensor([3, 4]))
    for tensor in tensors(cache):
        assert not tensor[[3, 4]].any()
        assert tensor[0].any()


def test_caches_whose_scales_do_not_fit_are_refused_before_c_reads_them():
    cache = int8_cache()
    assert cache.scales is not None
    q = randn(1, HEADS, DIM)
    segment = Segment(first_row=0, num_queries=1, first_position=3, key_index=[3])
    layout = paged_layout([segment], num_rows=1, block_size=BLOCK_SIZE)
    for keys, scales, message in (
        (cache.keys, (cache.scales[0][:2], cache.scales[1]), "need scales"),
        (cache.keys.float(), cache.scales, "must be int8"),
        (cache.keys, (cache.scales[0].double(), cache.scales[1]), "must be float32"),
    ):
        broken = PagedKV(keys=keys, values=cache.values, scales=scales)
        with pytest.raises(ValueError, match=message):
            paged_attention(q, broken, layout)
