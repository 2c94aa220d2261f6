import pytest
import torch

from kernels.attention import Segment, packed_layout
from kernels.gpu.attention.backward import attention_backward_triton
from kernels.gpu.attention.forward import attention_triton
from kernels.gpu.attention.tasks import key_tiles
from tests.kernels.accuracy import randn
from tests.kernels.sequences import make_qkv, reference, shared_prompt, whole_sequences


def gradients(q, k, v, grad, segments, device) -> list[torch.Tensor]:
    layout = packed_layout(segments, num_rows=len(q), device=device)
    q, k, v, grad = (x.to(device) for x in (q, k, v, grad))
    out, logsumexp = attention_triton(q, k, v, layout)
    return [x.cpu() for x in attention_backward_triton(grad, q, k, v, out, logsumexp, layout)]


def true_gradients(q, k, v, grad, segments) -> list[torch.Tensor]:
    inputs = [x.double().requires_grad_() for x in (q, k, v)]
    reference_with_gradient(*inputs, segments).backward(grad.double())
    return [x.grad for x in inputs]


def reference_with_gradient(q, k, v, segments) -> torch.Tensor:
    """`reference`, which writes into a tensor of zeros that has no gradient of its own."""
    return reference(q * 1.0, k, v, segments)


def check(got, expected, tolerance: float) -> None:
    for name, tensor, true in zip("qkv", got, expected, strict=True):
        torch.testing.assert_close(
            tensor.double(),
            true,
            rtol=tolerance,
            atol=tolerance * float(true.abs().max()),
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 1)])
def test_gradients_agree_with_float64(heads, kv_heads, device):
    # one token; one past a key block; the last ragged
    segments = whole_sequences([1, 65, 10])
    q, k, v = make_qkv(76, heads=heads, kv_heads=kv_heads)
    grad = randn(*q.shape, seed=3)
    check(gradients(q, k, v, grad, segments, device), true_gradients(q, k, v, grad, segments), 1e-5)


def test_gradients_of_bfloat16_agree_with_float64(device):
    segments = whole_sequences([70])
    q, k, v = make_qkv(70, dtype=torch.bfloat16)
    grad = randn(*q.shape, seed=3, dtype=torch.bfloat16)
    check(gradients(q, k, v, grad, segments, device), true_gradients(q, k, v, grad, segments), 2e-2)


def test_a_shared_prompt_sums_the_gradients_of_all_that_see_it(device):
    segments, num_rows = shared_prompt()
    q, k, v = make_qkv(num_rows)
    grad = randn(*q.shape, seed=3)
    check(gradients(q, k, v, grad, segments, device), true_gradients(q, k, v, grad, segments), 1e-5)


def test_a_sibling_may_share_a_part_of_what_another_holds_as_its_own(device):
    # the first computes prompt and answer at once; the second shares the first 70 of its 90 rows
    segments = [
        Segment(first_row=0, num_queries=90, first_position=0, key_index=range(90)),
        Segment(
            first_row=90, num_queries=9, first_position=70, key_index=[*range(70), *range(90, 99)]
        ),
    ]
    q, k, v = make_qkv(99)
    grad = randn(*q.shape, seed=3)
    check(gradients(q, k, v, grad, segments, device), true_gradients(q, k, v, grad, segments), 1e-5)


def test_rows_of_no_segment_have_no_gradient_and_reach_none(device):
    segments = [Segment(first_row=2, num_queries=3, first_position=0, key_index=range(2, 5))]
    q, k, v = make_qkv(8)
    for x in (q, k, v):
        x[[0, 1, 5, 6, 7]] = float("nan")
    grad = randn(*q.shape, seed=3)
    for got in gradients(q, k, v, grad, segments, device):
        assert got.isfinite().all()
        assert not got[[0, 1, 5, 6, 7]].any()
    assert not gradients(q, k, v, grad, [], device)[0].any()


def test_every_row_of_keys_lies_in_one_tile_and_is_visited_by_all_that_see_it():
    segments, num_rows = shared_prompt()
    tiles = key_tiles(packed_layout(segments, num_rows=num_rows))
    rows = tiles.rows_KC[tiles.rows_KC >= 0].tolist()
    assert sorted(rows) == list(range(num_rows))
    visits = tiles.visits_U6.tolist()
    seen = 0
    for tile in range(len(tiles.rows_KC)):
        for first, end, position, first_row, *_ in visits[
            tiles.starts_K[tile] : tiles.starts_K[tile + 1]
        ]:
            (segment,) = (s for s in segments if s.first_row == first_row)
            expected = list(segment.key_index[position : position + end - first])
            assert tiles.rows_KC[tile, first:end].tolist() == expected
            seen += end - first
    assert seen == sum(s.first_position + s.num_queries for s in segments)
