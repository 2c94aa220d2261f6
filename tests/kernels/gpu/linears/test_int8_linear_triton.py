import pytest
import torch

from kernels.gpu.linears.int8_linear import MAX_LEVELS, int8_linear_triton
from kernels.int8_linear import int8_linear, quantize_channels
from kernels.quantize import STEP_RATIO, activation_levels
from tests.kernels.accuracy import randn


def hard_rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    """Plain rows, outliers of 16 bits, zeros, numbers whose inverse overflows, and rows that are not finite."""
    x = randn(7, width)
    x[1, [3, 9]] = torch.tensor([900.0, -4000.0])
    x[2] = 0
    x[3] = 1e-31
    x[4, 5], x[5, 0] = float("inf"), float("nan")
    x[6, 1:] = 0  # all that a row has is its outlier
    return x.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_bias", [False, True])
def test_rows_are_the_bits_of_the_cpu(dtype, with_bias, device):
    width, columns = 600, 65  # one past a tile of columns; the last tile of inner ones ragged
    weight, scale = quantize_channels(randn(columns, width, seed=1))
    bias = randn(columns, seed=2, dtype=dtype) if with_bias else None
    x = hard_rows(width, dtype)
    expected = int8_linear(x, weight, scale, bias)
    inputs = (None if t is None else t.to(device) for t in (x, weight, scale, bias))
    got = int8_linear_triton(*inputs, levels=activation_levels(width), ratio=STEP_RATIO).cpu()
    assert got[[4, 5]].isnan().all()
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_the_greatest_integers_of_both_signs_are_multiplied_exactly(device):
    width = 521  # the fewest in features whose levels fit
    assert activation_levels(width) <= MAX_LEVELS < activation_levels(width - 4)
    weight = torch.full((3, width), 127, dtype=torch.int8)
    weight[1] = -127
    scale = torch.ones(3)
    x = torch.zeros(2, width)
    x[0, 0], x[1, 520] = 1.0, -1.0
    got = int8_linear_triton(
        *(t.to(device) for t in (x, weight, scale)),
        None,
        levels=activation_levels(width),
        ratio=STEP_RATIO,
    )
    torch.testing.assert_close(got.cpu(), int8_linear(x, weight, scale), rtol=0, atol=0)


def test_levels_that_do_not_fit_are_refused(device):
    x, weight = torch.ones(1, 8).to(device), torch.ones(1, 8, dtype=torch.int8).to(device)
    with pytest.raises(ValueError, match="32767 levels and 8 in features do not fit"):
        int8_linear_triton(
            x, weight, torch.ones(1).to(device), None, levels=32767, ratio=STEP_RATIO
        )
