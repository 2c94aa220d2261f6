import pytest
import torch

from kernels.int4_linear import dequantize_groups, int4_linear, quantize_groups
from tests.kernels.accuracy import randn


def test_two_weights_lie_in_a_byte_and_each_group_uses_its_whole_range():
    weight = torch.zeros(1, 130)
    weight[0, :3] = torch.tensor([7.0, -7.0, 3.4])
    weight[0, 128:] = torch.tensor([0.07, -0.01])
    packed, scale = quantize_groups(weight)
    assert packed[0, :2].tolist() == [15 | 1 << 4, 11 | 8 << 4]
    torch.testing.assert_close(scale, torch.tensor([[1.0, 0.01]]))
    back = dequantize_groups(packed, scale)
    torch.testing.assert_close(
        back[0, [0, 1, 2, 128, 129]], torch.tensor([7.0, -7.0, 3.0, 0.07, -0.01])
    )


def test_the_result_is_that_of_the_weights_that_the_integers_stand_for():
    x, bias = randn(5, 200), randn(9, seed=2)
    packed, scale = quantize_groups(randn(9, 200, seed=1))
    expected = x.double() @ dequantize_groups(packed, scale).double().T + bias.double()
    torch.testing.assert_close(
        int4_linear(x, packed, scale, bias).double(), expected, rtol=1e-5, atol=1e-5
    )


def test_a_group_of_zeros_stays_zeros():
    packed, scale = quantize_groups(torch.zeros(2, 256))
    assert not int4_linear(randn(1, 256), packed, scale).any()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="even width, got a width of 3"):
        quantize_groups(torch.zeros(1, 3))
    packed, scale = quantize_groups(randn(2, 130))
    with pytest.raises(
        ValueError, match=r"need rows of 130 and scales \(2, 2\), got 128 and \(2, 2\)"
    ):
        int4_linear(randn(1, 128), packed, scale)
