import pytest
import torch

from kernels.fp8_linear import fp8_linear, quantize_blocks
from kernels.gpu.linears.fp8_linear import fp8_linear_triton
from tests.kernels.accuracy import assert_rows_stand_alone, randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_rows", "columns", "width"), [(1, 1, 16), (130, 130, 300)])
def test_it_agrees_with_the_tensor_path(num_rows, columns, width, dtype, device):
    x, bias = randn(num_rows, width, dtype=dtype), randn(columns, seed=2, dtype=dtype)
    x[0, 0] = 100.0  # its group is coarser than the others
    weight = randn(columns, width, seed=1)
    weight[:, width // 2 :] *= 1e-3
    numbers, scale = quantize_blocks(weight)
    for b in (None, bias):
        expected = fp8_linear(x, numbers, scale, b)
        inputs = (None if t is None else t.to(device) for t in (x, numbers, scale, b))
        got = fp8_linear_triton(*inputs).cpu()
        torch.testing.assert_close(
            got, expected, rtol=1e-5 if dtype is torch.float32 else 1e-2, atol=1e-5
        )


def test_rows_that_are_not_finite_reach_no_other(device):
    x = randn(3, 130)
    x[1, 129] = float("inf")
    numbers, scale = quantize_blocks(randn(3, 130, seed=1))
    got = fp8_linear_triton(*(t.to(device) for t in (x, numbers, scale)))
    assert got.isnan().all(1).tolist() == [False, True, False]


def test_a_row_is_the_same_bits_among_any_rows(device):
    numbers, scale = (t.to(device) for t in quantize_blocks(randn(20, 140, seed=1)))
    x = randn(130, 140).to(device)
    assert_rows_stand_alone(lambda rows: fp8_linear_triton(rows, numbers, scale), x, (1, 129))
