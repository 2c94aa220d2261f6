import pytest
import torch

from kernels.gpu.linears.int4_linear import int4_linear_triton
from kernels.int4_linear import dequantize_groups, quantize_groups
from tests.kernels.accuracy import assert_as_accurate, assert_rows_stand_alone, randn


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_rows", "columns", "width"), [(1, 1, 2), (66, 65, 300)])
def test_int4_linear_is_as_accurate_as_pytorch_on_its_weights(
    num_rows, columns, width, dtype, device
):
    x, bias = randn(num_rows, width, dtype=dtype), randn(columns, seed=2, dtype=dtype)
    packed, scale = quantize_groups(randn(columns, width, seed=1))
    weight = dequantize_groups(packed, scale).to(dtype)
    for b in (None, bias):
        truth = torch.nn.functional.linear(
            x.double(), weight.double(), None if b is None else b.double()
        )
        inputs = (None if t is None else t.to(device) for t in (x, packed, scale, b))
        peer = torch.nn.functional.linear(x, weight, b)
        assert_as_accurate(int4_linear_triton(*inputs).cpu(), peer=peer, truth=truth)


def test_a_row_is_the_same_bits_among_any_rows(device):
    packed, scale = (t.to(device) for t in quantize_groups(randn(20, 140, seed=1)))
    x = randn(66, 140, dtype=torch.bfloat16).to(device)
    assert_rows_stand_alone(lambda rows: int4_linear_triton(rows, packed, scale), x, (1, 65))
