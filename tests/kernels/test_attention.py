import pytest
import torch

import kernels.attention_fold
from kernels.attention import (
    PagedKV,
    Segment,
    attention_reference,
    packed_attention,
    packed_layout,
    paged_attention,
    paged_layout,
)
from kernels.paged_kv import cache_lanes
from tests.kernels.accuracy import assert_as_accurate, randn
from tests.kernels.sequences import (
    HEAD_DIM,
    NUM_HEADS,
    NUM_KV_HEADS,
    make_qkv,
    reference,
    shared_prompt,
    whole_sequences,
)

pytestmark = pytest.mark.usefixtures("either_path")

# one token; one below, at and one past a key block; two past two; 40 shares a bucket with 63 and 64, padded
LENGTHS = [130, 1, 63, 64, 65, 40]
DTYPES = [torch.float32, torch.bfloat16]


# --- packed


def test_the_reference_is_pytorchs_attention():
    q, k, v = make_qkv(9, dtype=torch.float64)
    heads_first = [x.transpose(0, 1)[None] for x in (q, k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *heads_first, is_causal=True, enable_gqa=True
    )
    torch.testing.assert_close(attention_reference(q, k, v), expected[0].transpose(0, 1))


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (6, 1)])
def test_packed_sequences_match_the_reference_in_float64(heads, kv_heads):
    segments = whole_sequences(LENGTHS)
    q, k, v = make_qkv(sum(LENGTHS), heads=heads, kv_heads=kv_heads, dtype=torch.float64)
    got = packed_attention(q, k, v, packed_layout(segments, num_rows=q.shape[0]))
    torch.testing.assert_close(got, reference(q, k, v, segments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_packed_attention_is_as_accurate_as_pytorch(dtype):
    segments = whole_sequences([65, 130])
    q, k, v = make_qkv(195, dtype=dtype)
    got = packed_attention(q, k, v, packed_layout(segments, num_rows=195))
    truth = reference(q.double(), k.double(), v.double(), segments)
    assert_as_accurate(got, peer=reference(q, k, v, segments), truth=truth)


def test_scores_far_apart_neither_overflow_nor_vanish():
    # the greatest score of a row lies in the first, the last or the middle key block; exp(300) is inf in float32
    q, k, v = make_qkv(150)
    q[:] = 0
    q[..., 0] = 4.0
    k[..., 0] = -300.0
    k[[3, 70, 149], :, 0] = 300.0
    segments = whole_sequences([150])
    got = packed_attention(q, k, v, packed_layout(segments, num_rows=150))
    expected = reference(*(x.double() for x in (q, k, v)), segments)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_key_blocks_are_folded_from_left_to_right():
    # equal weights, and one value in each key block: (1e8 - 1e8) + 1 is 1 in float32, any other order gives 0
    q, k, v = (torch.zeros_like(x) for x in make_qkv(129))
    v[0], v[64], v[128] = 1e8, -1e8, 1.0
    got = packed_attention(q, k, v, packed_layout(whole_sequences([129]), num_rows=129))
    assert torch.equal(got[-1], torch.full_like(got[-1], 1.0) / 129)


def test_completions_see_a_shared_prompt_in_other_rows():
    segments, num_rows = shared_prompt()
    q, k, v = make_qkv(num_rows, dtype=torch.float64)
    got = packed_attention(q, k, v, packed_layout(segments, num_rows=num_rows))
    torch.testing.assert_close(got, reference(q, k, v, segments), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_completion_is_the_same_bits_with_its_prompt_shared_or_repeated(dtype):
    segments, num_rows = shared_prompt()
    q, k, v = make_qkv(num_rows, dtype=dtype)
    shared = packed_attention(q, k, v, packed_layout(segments, num_rows=num_rows))
    for completion in segments[1:]:
        rows = torch.tensor(completion.key_index)
        alone = packed_layout(whole_sequences([len(rows)]), num_rows=len(rows))
        repeated = packed_attention(q[rows], k[rows], v[rows], alone)
        assert torch.equal(repeated, shared[rows])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_sequence_is_the_same_bits_alone_and_packed(dtype):
    segments = whole_sequences(LENGTHS)
    q, k, v = make_qkv(sum(LENGTHS), dtype=dtype)
    packed = packed_attention(q, k, v, packed_layout(segments, num_rows=q.shape[0]))
    for segment in segments:
        rows = slice(segment.first_row, segment.first_row + segment.num_queries)
        alone = packed_layout(whole_sequences([segment.num_queries]), num_rows=segment.num_queries)
        assert torch.equal(packed_attention(q[rows], k[rows], v[rows], alone), packed[rows])


def test_keys_may_be_listed_beyond_the_last_query():
    q, k, v = make_qkv(70)
    longer = [Segment(first_row=0, num_queries=60, first_position=0, key_index=range(70))]
    got = packed_attention(q, k, v, packed_layout(longer, num_rows=70))
    expected = packed_attention(q, k, v, packed_layout(whole_sequences([60, 10]), num_rows=70))
    assert torch.equal(got[:60], expected[:60])
    assert not got[60:].any(), "rows of no segment stay zero"


# the first three share a bucket; 0 * NaN is NaN, so padding and hidden keys must not read a NaN at all
@pytest.mark.parametrize("broken", [0, 1, 3])
def test_a_nan_stays_in_its_sequence(broken):
    lengths = [40, 63, 33, 65]
    segments = whole_sequences(lengths)
    layout = packed_layout(segments, num_rows=sum(lengths))
    grad = randn(sum(lengths), NUM_HEADS, HEAD_DIM, seed=9)
    is_broken = torch.zeros(sum(lengths), dtype=torch.bool)
    is_broken[segments[broken].first_row :][: lengths[broken]] = True

    def run(value):
        leaves = make_qkv(sum(lengths))
        for leaf in leaves:
            leaf[is_broken] = value
        leaves = [leaf.requires_grad_() for leaf in leaves]
        out = packed_attention(*leaves, layout)
        return [
            out,
            *torch.autograd.grad(out, leaves, grad.masked_fill(is_broken[:, None, None], value)),
        ]

    for clean, with_nan in zip(run(0.5), run(float("nan")), strict=True):
        assert torch.equal(with_nan[~is_broken], clean[~is_broken])
        assert with_nan[is_broken].isnan().any()


def test_a_gemm_without_a_row_tile_is_refused_with_its_shape(monkeypatch, use_tensors):
    monkeypatch.setattr(kernels.attention_fold, "gemm_row_tile", lambda *shape: 0)
    q, k, v = make_qkv(3)
    with pytest.raises(RuntimeError, match=r"\[16 x 64\] torch.float32 GEMM .* model\.dtype"):
        packed_attention(q, k, v, packed_layout(whole_sequences([3]), num_rows=3))


# --- paged

# (sequence, tokens) of each step: chunks that end inside, at and past key blocks, decode steps among them
PAGED_LENGTHS = [130, 66, 3, 70]
STEPS = [
    [(0, 50)],
    [(0, 1), (1, 64)],
    [(1, 1), (0, 13), (2, 1)],
    [(2, 1), (1, 1), (0, 1), (3, 63)],
    [(0, 64), (2, 1), (3, 1)],
    [(3, 6), (0, 1)],
]


def lanes(dtype, block_size) -> int:
    """As an engine would choose."""
    return cache_lanes(
        dtype,
        torch.device("cpu"),
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        block_size=block_size,
    )


class Cache:
    """A `PagedKV` whose blocks are dealt out in a shuffled order; what is not written yet holds `garbage`."""

    def __init__(self, lengths, block_size, dtype, garbage):
        num_blocks = [-(-length // block_size) for length in lengths]
        shuffled = torch.randperm(sum(num_blocks) + 2, generator=torch.Generator().manual_seed(3))
        deal = iter(shuffled.tolist())
        self.tables = [[next(deal) for _ in range(count)] for count in num_blocks]
        self.block_size = block_size
        shape = (sum(num_blocks) + 2, NUM_KV_HEADS, block_size, HEAD_DIM)
        self.kv = PagedKV(
            keys=torch.full(shape, garbage, dtype=dtype),
            values=torch.full(shape, garbage, dtype=dtype),
            lanes=lanes(dtype, block_size),
        )

    def write(self, sequence, positions, k, v):
        table = torch.tensor(self.tables[sequence])
        self.kv.write(k, v, table[positions // self.block_size], positions % self.block_size)

    def fill_others(self, sequence, value):
        """Overwrite every block of every other sequence."""
        others = [b for b in range(len(self.kv.keys)) if b not in self.tables[sequence]]
        self.kv.keys[others] = value
        self.kv.values[others] = value


def run_steps(steps, sequences, cache) -> list[torch.Tensor]:
    """As an engine would: write the new keys, attend. Returns each sequence's output."""
    outputs = [[] for _ in sequences]
    done = [0] * len(sequences)
    for step in steps:
        segments, queries = [], []
        for sequence, count in step:
            start = done[sequence]
            q, k, v = (x[start : start + count] for x in sequences[sequence])
            cache.write(sequence, torch.arange(start, start + count), k, v)
            row = sum(len(rows) for rows in queries)
            table = cache.tables[sequence]
            segments.append(
                Segment(first_row=row, num_queries=count, first_position=start, key_index=table)
            )
            queries.append(q)
            done[sequence] += count
        q = torch.cat(queries)
        layout = paged_layout(segments, num_rows=len(q), block_size=cache.block_size)
        parts = paged_attention(q, cache.kv, layout).split([count for _, count in step])
        for (sequence, _), part in zip(step, parts, strict=True):
            outputs[sequence].append(part)
    assert done == [len(q) for q, _, _ in sequences], "the steps must cover every token"
    return [torch.cat(parts) for parts in outputs]


def packed_sequences(lengths, dtype):
    """(q, k, v) of each sequence, and its packed attention."""
    q, k, v = make_qkv(sum(lengths), dtype=dtype)
    out = packed_attention(q, k, v, packed_layout(whole_sequences(lengths), num_rows=len(q)))
    return list(zip(*(x.split(lengths) for x in (q, k, v)), strict=True)), out.split(lengths)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_paged_chunked_and_mixed_with_decode_is_bitwise_packed(block_size, dtype):
    sequences, packed = packed_sequences(PAGED_LENGTHS, dtype)
    cache = Cache(PAGED_LENGTHS, block_size, dtype, garbage=0.0)
    for got, expected in zip(run_steps(STEPS, sequences, cache), packed, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_token_by_token_is_bitwise_packed(dtype):
    sequences, packed = packed_sequences([70], dtype)
    steps = [[(0, 1)]] * 70
    assert torch.equal(run_steps(steps, sequences, Cache([70], 16, dtype, 0.0))[0], packed[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_garbage_in_unwritten_slots_changes_no_bit(sign, dtype):
    sequences, packed = packed_sequences(PAGED_LENGTHS, dtype)
    cache = Cache(PAGED_LENGTHS, 32, dtype, garbage=sign * torch.finfo(dtype).max)
    for got, expected in zip(run_steps(STEPS, sequences, cache), packed, strict=True):
        assert torch.equal(got, expected)


def test_a_nan_in_the_blocks_of_other_sequences_stays_there():
    # 3 tokens in one block of 16: the other three quarters of the key block are padding of the block table
    lengths = [3, 70]
    sequences, packed = packed_sequences(lengths, torch.float32)
    for sequence in (0, 1):
        cache = Cache(lengths, 16, torch.float32, garbage=0.0)
        run_steps([[(0, 3), (1, 70)]], sequences, cache)
        cache.fill_others(sequence, float("nan"))
        q = sequences[sequence][0]
        segment = Segment(
            first_row=0, num_queries=len(q), first_position=0, key_index=cache.tables[sequence]
        )
        layout = paged_layout([segment], num_rows=len(q), block_size=16)
        assert torch.equal(paged_attention(q, cache.kv, layout), packed[sequence])


# --- gradients


def gradients(op, tensors, grad):
    leaves = [x.clone().requires_grad_() for x in tensors]
    return torch.autograd.grad(op(*leaves), leaves, grad)


def assert_gradients_match(segments, num_rows, *, heads=NUM_HEADS, kv_heads=NUM_KV_HEADS):
    qkv = make_qkv(num_rows, heads=heads, kv_heads=kv_heads, dtype=torch.float64)
    grad = randn(num_rows, heads, HEAD_DIM, seed=9, dtype=torch.float64)
    layout = packed_layout(segments, num_rows=num_rows)
    got = gradients(lambda *x: packed_attention(*x, layout), qkv, grad)
    expected = gradients(lambda *x: reference(*x, segments), qkv, grad)
    for name, actual, truth in zip("qkv", got, expected, strict=True):
        torch.testing.assert_close(
            actual, truth, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3), (6, 1)])
def test_gradients_match_autograd_of_the_reference_in_float64(heads, kv_heads):
    segments = whole_sequences(LENGTHS)
    assert_gradients_match(segments, sum(LENGTHS), heads=heads, kv_heads=kv_heads)


def test_gradients_of_every_completion_reach_the_shared_prompt():
    assert_gradients_match(*shared_prompt())


def test_padding_of_a_bucket_adds_no_gradient():
    # 33 and 64 queries share a bucket: 31 padded rows
    segments = whole_sequences([33, 64])
    layout = packed_layout(segments, num_rows=97)
    assert len(layout.buckets) == 1
    assert (layout.buckets[0].positions_SQ < 0).sum() == 31
    assert_gradients_match(segments, 97)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_as_accurate_as_pytorchs(dtype):
    segments = whole_sequences([65, 33])
    layout = packed_layout(segments, num_rows=98)
    qkv = make_qkv(98, dtype=dtype)
    grad = randn(98, NUM_HEADS, HEAD_DIM, seed=9, dtype=dtype)
    truth = gradients(lambda *x: reference(*x, segments), [x.double() for x in qkv], grad.double())
    peer = gradients(lambda *x: reference(*x, segments), qkv, grad)
    got = gradients(lambda *x: packed_attention(*x, layout), qkv, grad)
    for g, p, t in zip(got, peer, truth, strict=True):
        assert_as_accurate(g, peer=p, truth=t)


# --- layout


def test_segments_of_like_shape_share_a_bucket():
    layout = packed_layout(whole_sequences([64, 33, 1, 1, 130, 32, 65]), num_rows=326)
    shapes = [(b.num_key_blocks, *b.query_rows_SQ.shape) for b in layout.buckets]
    assert shapes == [(1, 2, 1), (1, 1, 32), (1, 2, 64), (2, 1, 65), (3, 1, 130)]
    assert layout.num_rows == 326


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_an_earlier_owner_left_in_a_block_does_not_reach_the_next(dtype):
    q, k, v = make_qkv(3, dtype=dtype)
    segment = Segment(first_row=0, num_queries=3, first_position=0, key_index=[1])
    outputs = []
    for left in (0.0, float("nan")):
        kv = PagedKV(
            keys=torch.full((2, NUM_KV_HEADS, 16, HEAD_DIM), left, dtype=dtype),
            values=torch.full((2, NUM_KV_HEADS, 16, HEAD_DIM), left, dtype=dtype),
            lanes=lanes(dtype, 16),
        )
        kv.write(k, v, torch.tensor([1, 1, 1]), torch.arange(3))
        outputs.append(paged_attention(q, kv, paged_layout([segment], num_rows=3, block_size=16)))
    assert torch.equal(outputs[0], outputs[1])
