import pytest
import torch

from kernels.attention import PagedKV, Segment, packed_layout, paged_layout
from kernels.gpu.attention.forward import attention_triton
from kernels.gpu.attention.tasks import attention_tasks
from kernels.gpu.paged_kv import write_kv_triton
from kernels.quantize import int8_round_trip
from tests.kernels.accuracy import assert_as_accurate
from tests.kernels.sequences import make_qkv, reference, shared_prompt, whole_sequences

BLOCK_SIZE = 16


def packed(q, k, v, segments, device, **options):
    layout = packed_layout(segments, num_rows=len(q), device=device)
    return attention_triton(*(x.to(device) for x in (q, k, v)), layout, **options)


def logsumexp_reference(q, k, segments) -> torch.Tensor:
    """[T, N] in float64."""
    out = torch.zeros(q.shape[:2], dtype=torch.float64)
    group = q.shape[1] // k.shape[1]
    for s in segments:
        for i in range(s.num_queries):
            keys = torch.tensor(s.key_index[: s.first_position + i + 1])
            heads = k[keys].double().repeat_interleave(group, dim=1)
            scores = torch.einsum("nd,knd->nk", q[s.first_row + i].double(), heads)
            out[s.first_row + i] = (scores * q.shape[-1] ** -0.5).logsumexp(-1)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (6, 1)])
def test_packed_sequences_match_the_reference(heads, kv_heads, dtype, device):
    # one token; one past a key block; the last sequence ragged
    segments = whole_sequences([1, 65, 10])
    q, k, v = make_qkv(76, heads=heads, kv_heads=kv_heads, dtype=dtype)
    out, logsumexp = packed(q, k, v, segments, device)
    truth = reference(q.double(), k.double(), v.double(), segments)
    assert_as_accurate(out.cpu(), peer=reference(q, k, v, segments), truth=truth)
    expected = logsumexp_reference(q, k, segments)
    torch.testing.assert_close(logsumexp.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_scores_far_apart_neither_overflow_nor_vanish(device):
    q, k, v = make_qkv(150)
    q[:] = 0
    q[..., 0] = 4.0
    k[..., 0] = -300.0
    k[[3, 70, 149], :, 0] = 300.0
    segments = whole_sequences([150])
    expected = reference(*(x.double() for x in (q, k, v)), segments)
    got = packed(q, k, v, segments, device)[0].cpu().double()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_key_blocks_are_folded_from_left_to_right(device):
    # equal weights, and one value in each key block: (1e8 - 1e8) + 1 is 1 in float32, any other order gives 0
    q, k, v = (torch.zeros_like(x) for x in make_qkv(129))
    v[0], v[64], v[128] = 1e8, -1e8, 1.0
    for split in (0, 1):
        got = packed(q, k, v, whole_sequences([129]), device, blocks_per_program=split)[0]
        torch.testing.assert_close(got[-1].cpu(), torch.full_like(v[-1, :1], 1 / 129).expand(4, -1))


def test_a_completion_is_the_same_bits_with_its_prompt_shared_or_repeated(device):
    segments, num_rows = shared_prompt()
    q, k, v = make_qkv(num_rows, dtype=torch.bfloat16)
    shared, sums = packed(q, k, v, segments, device)
    expected = reference(*(x.double() for x in (q, k, v)), segments)
    torch.testing.assert_close(shared.cpu().double(), expected, rtol=2e-2, atol=2e-2)
    for completion in (segments[1], segments[3]):
        rows = torch.tensor(completion.key_index)
        out, logsumexp = packed(q[rows], k[rows], v[rows], whole_sequences([len(rows)]), device)
        assert torch.equal(out.cpu(), shared.cpu()[rows])
        assert torch.equal(logsumexp.cpu(), sums.cpu()[rows])


def paged_cache(k, v, tables: list[list[int]], lengths: list[int], device: str, dtype=None):
    """A cache of NaN (7 if quantized) that holds the sequences' keys and values, written by the kernel."""
    num_blocks = 1 + max(b for table in tables for b in table)
    shape = (num_blocks, k.shape[1], BLOCK_SIZE, k.shape[2])
    fill = float("nan") if dtype is None else 7.0
    keys, values = (torch.full(shape, fill).to(dtype or k.dtype).to(device) for _ in "kv")
    scales = None if dtype is None else tuple(torch.full(shape[:3], 7.0).to(device) for _ in "kv")
    start = 0
    for table, length in zip(tables, lengths, strict=True):
        places = torch.arange(length)
        blocks = torch.tensor(table)[places // BLOCK_SIZE]
        rows = slice(start, start + length)
        inputs = (k[rows], v[rows], blocks, places % BLOCK_SIZE)
        write_kv_triton(*(x.to(device) for x in inputs), keys, values, scales)
        start += length
    return PagedKV(keys=keys, values=values, scales=scales)


def last_queries(tables, lengths, num_queries: int) -> list[Segment]:
    """The last queries of each sequence, in rows one after another."""
    return [
        Segment(
            first_row=i * num_queries,
            num_queries=num_queries,
            first_position=n - num_queries,
            key_index=table,
        )
        for i, (table, n) in enumerate(zip(tables, lengths, strict=True))
    ]


# siblings that share two key blocks, then a stranger of one token past a block, with drafts
TABLES = [[9, 3, 5, 2, 8, 1, 0, 4, 12], [9, 3, 5, 2, 8, 1, 0, 4, 13, 14], [11, 10, 7, 6, 15]]
LENGTHS = [130, 150, 65]


@pytest.mark.parametrize("num_queries", [1, 3])
@pytest.mark.parametrize("split", [0, 1, 2])
def test_decode_gives_the_bits_of_prefill_through_any_blocks_and_splits(num_queries, split, device):
    q, k, v = make_qkv(sum(LENGTHS), dtype=torch.bfloat16)
    k[130:258], v[130:258] = k[:128], v[:128]  # what the siblings share
    whole, sums = packed(q, k, v, whole_sequences(LENGTHS), device)
    cache = paged_cache(k, v, TABLES, LENGTHS, device)
    ends = torch.tensor(LENGTHS).cumsum(0).tolist()
    rows = torch.cat([torch.arange(end - num_queries, end) for end in ends])
    segments = last_queries(TABLES, LENGTHS, num_queries)
    layout = paged_layout(segments, num_rows=len(rows), block_size=BLOCK_SIZE, device=device)
    assert attention_tasks(layout, 32).members_P5.tolist()[0][2:] == [
        0,
        0,
        2,
    ]  # read by both siblings
    got = attention_triton(
        q[rows].to(device), cache.keys, cache.values, layout, blocks_per_program=split
    )
    assert torch.equal(got[0].cpu(), whole.cpu()[rows])
    assert torch.equal(got[1].cpu(), sums.cpu()[rows])


def test_a_chunk_of_a_prefill_gives_the_bits_of_the_whole(device):
    q, k, v = make_qkv(100, dtype=torch.bfloat16)
    whole = packed(q, k, v, whole_sequences([100]), device)[0]
    chunk = [Segment(first_row=0, num_queries=37, first_position=50, key_index=range(87))]
    layout = packed_layout(chunk, num_rows=37, device=device)
    got = attention_triton(*(x.to(device) for x in (q[50:87], k, v)), layout)[0]
    assert torch.equal(got, whole[50:87])


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.int8, 1e-5), (torch.float8_e4m3fn, 0.15)], ids=str
)
def test_a_quantized_cache_is_read_with_its_scales(dtype, tolerance, device):
    q, k, v = make_qkv(80)
    table = [[4, 0, 2, 1, 3]]
    cache = paged_cache(k, v, table, [80], device, dtype=dtype)
    layout = paged_layout(
        last_queries(table, [80], 2), num_rows=2, block_size=BLOCK_SIZE, device=device
    )
    got = attention_triton(
        q[-2:].to(device), cache.keys, cache.values, layout, scales=cache.scales
    )[0]
    read = (int8_round_trip(k), int8_round_trip(v)) if dtype is torch.int8 else (k, v)
    expected = reference(q, *read, whole_sequences([80]))[-2:]
    torch.testing.assert_close(got.cpu(), expected, rtol=tolerance, atol=tolerance)


def test_a_broken_sequence_reaches_no_other(device):
    q, k, v = make_qkv(80)
    k[3], v[70] = (
        float("nan"),
        float("nan"),
    )  # of the first sequence, and of the third's first token
    out = packed(q, k, v, whole_sequences([10, 60, 10]), device)[0].cpu()
    is_broken = out.isnan().any(-1).any(-1)
    assert not is_broken[10:70].any()
    assert is_broken[70:].all()


def test_rows_of_no_segment_are_zeros(device):
    q, k, v = make_qkv(8)
    segments = [Segment(first_row=2, num_queries=3, first_position=0, key_index=range(2, 5))]
    out, logsumexp = packed(q, k, v, segments, device)
    assert not out[[0, 1, 5, 6, 7]].any()
    assert not logsumexp[[0, 1, 5, 6, 7]].any()
    assert not packed(q, k, v, [], device)[0].any()
