import pytest
import torch

from kernels.gpu.rope import rope_triton
from kernels.rope import rope_reference, rope_table
from tests.kernels.accuracy import assert_as_accurate, randn


def angles(positions: list[int], head_dim: int) -> torch.Tensor:
    return rope_table(max(positions) + 1, head_dim, theta=10_000.0)[positions]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 2), (9, 64), (8, 24)])
def test_rope_is_as_accurate_as_the_reference(num_heads, head_dim, dtype, device):
    # packed positions: two sequences, the second from the middle of one
    positions = [0, 1, 2, 700, 701]
    x, cos_sin = (
        randn(5, num_heads, head_dim, dtype=dtype).to(device),
        angles(positions, head_dim).to(device),
    )
    peer = rope_reference(x, cos_sin)
    truth = rope_reference(x.double(), cos_sin.double())
    assert_as_accurate(rope_triton(x, cos_sin), peer=peer, truth=truth)


def test_it_may_write_in_place_into_a_slice_of_wider_rows(device):
    rows, cos_sin = randn(4, 6, 16).to(device), angles([3, 0, 9, 2], 16).to(device)
    expected = rope_triton(rows[:, 1:4].clone(), cos_sin)
    before = rows.clone()
    heads = rows[:, 1:4]
    assert rope_triton(heads, cos_sin, out_TND=heads) is heads
    assert torch.equal(rows[:, 1:4], expected)
    assert torch.equal(rows[:, 0], before[:, 0])
    assert torch.equal(rows[:, 4:], before[:, 4:])


def test_the_inverse_is_the_gradient(device):
    x, grad = randn(3, 2, 8), randn(3, 2, 8, seed=1)
    true, cos_sin = x.double().requires_grad_(), angles([5, 6, 1], 8)
    rope_reference(true, cos_sin.double()).backward(grad.double())
    got = rope_triton(grad.to(device), cos_sin.to(device), is_inverse=True)
    torch.testing.assert_close(got.cpu().double(), true.grad, rtol=1e-5, atol=1e-6)
