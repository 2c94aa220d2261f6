import pytest
import torch

from kernels.attention import PagedKV, Segment, paged_attention, paged_layout
from kernels.attention_layout import KEY_BLOCK
from tests.kernels.accuracy import randn

BLOCK_SIZE = 32  # half a key block


def decoding(*tables_and_lengths, num_queries=1):
    """Segments whose queries are the last of sequences of these lengths, rows in this order."""
    return [
        Segment(
            first_row=i * num_queries,
            num_queries=num_queries,
            first_position=length - num_queries,
            key_index=table,
        )
        for i, (table, length) in enumerate(tables_and_lengths)
    ]


def tasks_of(segments):
    """[(rows, shared keys)] of each task."""
    num_rows = sum(s.num_queries for s in segments)
    layout = paged_layout(segments, num_rows=num_rows, block_size=BLOCK_SIZE)
    queries, tasks = layout.queries_and_tasks
    return sorted(
        (queries[first : first + count, 0].tolist(), shared)
        for first, count, shared in tasks.tolist()
    )


def test_siblings_share_the_whole_key_blocks_that_they_have_in_common():
    a, b, c = [7, 3, 5, 2, 9], [7, 3, 5, 2, 8], [7, 3, 5, 4]
    assert tasks_of(decoding((a, 140), (b, 150))) == [([0, 1], 2 * KEY_BLOCK)]
    assert tasks_of(decoding((a, 140), (c, 128))) == [([0, 1], KEY_BLOCK)]


def test_strangers_and_sequences_of_less_than_a_key_block_in_common_stay_apart():
    a, b, stranger = [7, 3, 5], [7, 2, 5], [1, 4, 6]
    assert tasks_of(decoding((a, 90), (stranger, 90))) == [([0], 0), ([1], 0)]
    assert tasks_of(decoding((a, 90), (b, 90))) == [([0], 0), ([1], 0)]


def test_keys_that_a_query_may_not_see_yet_are_not_shared():
    table = [7, 3, 5, 2]
    assert tasks_of(decoding((table, 128), (table, 100))) == [([0, 1], KEY_BLOCK)]
    assert tasks_of(decoding((table, 128), (table, 63))) == [([0], 0), ([1], 0)]


def test_a_fifth_sibling_opens_a_task_and_others_between_do_not_part_them():
    tables = [[7, 3, i] if i % 2 else [8, 4, i] for i in range(10, 20)]
    tasks = tasks_of(decoding(*((t, 70) for t in tables)))
    assert tasks == [
        ([0, 2, 4, 6], KEY_BLOCK),
        ([1, 3, 5, 7], KEY_BLOCK),
        ([8], 0),
        ([9], 0),
    ]


def test_a_long_segment_is_cut_into_tasks_of_its_own():
    table = [7, 3, 5]
    prefill = Segment(first_row=0, num_queries=11, first_position=64, key_index=table)
    other = Segment(first_row=11, num_queries=1, first_position=70, key_index=table)
    assert tasks_of([prefill, other]) == [(list(range(8)), 0), ([8, 9, 10], 0), ([11], 0)]


@pytest.mark.parametrize("num_queries", [1, 2])
@pytest.mark.parametrize(("heads", "kv_heads"), [(9, 3), (4, 4), (4, 1), (5, 1)])
def test_a_sibling_has_the_same_bits_alone_and_beside_others(heads, kv_heads, num_queries):
    shape = (12, kv_heads, BLOCK_SIZE, 24)
    cache = PagedKV(keys=randn(*shape, seed=1), values=randn(*shape, seed=2))
    prompt = [7, 3, 5, 2]
    together = decoding(
        ([*prompt, 9], 140),
        ([*prompt, 8], 129 + num_queries),
        ([*prompt, 6, 1], 170),
        ([4, 0, 10, 11], 100),
        num_queries=num_queries,
    )
    q = randn(4 * num_queries, heads, 24, seed=3)
    layout = paged_layout(together, num_rows=len(q), block_size=BLOCK_SIZE)
    joint = paged_attention(q, cache, layout)
    for segment in together:
        alone = paged_layout([segment], num_rows=len(q), block_size=BLOCK_SIZE)
        rows = slice(segment.first_row, segment.first_row + num_queries)
        assert torch.equal(joint[rows], paged_attention(q, cache, alone)[rows])
