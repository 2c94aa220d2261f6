import pytest
import torch

from kernels.gpu.swiglu import swiglu_backward_triton, swiglu_triton
from kernels.swiglu import swiglu_reference
from tests.kernels.accuracy import assert_as_accurate, randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (2, 1025), (3, 64)])
def test_swiglu_is_as_accurate_as_pytorch(num_rows, width, dtype, device):
    x = randn(num_rows, 2 * width, dtype=dtype).to(device) * 4
    assert_as_accurate(
        swiglu_triton(x), peer=swiglu_reference(x), truth=swiglu_reference(x.double())
    )


def test_extreme_gates_give_zero_or_up(device):
    gate, up = torch.tensor([[-1e4, -100.0, 100.0, 1e4]]), torch.full((1, 4), 2.0)
    out = swiglu_triton(torch.cat([gate, up], 1).to(device)).cpu()
    assert out[0, :2].abs().max() < 1e-30
    assert out[0, 2:].tolist() == [200.0, 2e4]


def test_strided_rows_give_the_bits_of_a_copy(device):
    x = randn(6, 40).to(device)[::2, :32]
    assert torch.equal(swiglu_triton(x), swiglu_triton(x.contiguous()))


@pytest.mark.parametrize("width", [1, 1025])
def test_the_gradient_agrees_with_float64(width, device):
    x, grad = randn(2, 2 * width) * 3, randn(2, width, seed=1)
    true = x.double().requires_grad_()
    swiglu_reference(true).backward(grad.double())
    got = swiglu_backward_triton(grad.to(device), x.to(device))
    torch.testing.assert_close(got.cpu().double(), true.grad, rtol=2e-5, atol=1e-6)


def test_rows_of_none_give_none(device):
    assert swiglu_triton(torch.zeros(0, 8).to(device)).shape == (0, 4)
