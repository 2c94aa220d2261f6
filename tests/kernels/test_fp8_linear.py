import pytest
import torch

from kernels.fp8_linear import fp8_linear, fp8_linear_reference, quantize_blocks
from tests.kernels.accuracy import assert_rows_stand_alone, randn


def test_a_block_of_the_weight_has_a_scale_of_its_own_that_uses_the_whole_range():
    weight = randn(130, 200)
    weight[:128, :128] *= 1e-3
    numbers, scale = quantize_blocks(weight)
    assert (numbers.dtype, tuple(scale.shape)) == (torch.float8_e4m3fn, (2, 2))
    assert numbers[:128, :128].float().abs().max() == numbers[128:, 128:].float().abs().max() == 448
    back = fp8_linear_reference(torch.eye(200, dtype=torch.float64), numbers, scale).T
    torch.testing.assert_close(back.float(), weight, rtol=2**-4, atol=1e-5)


def test_the_result_is_near_that_of_the_weights_before():
    x, weight, bias = (
        randn(5, 200, dtype=torch.bfloat16),
        randn(130, 200, seed=1),
        randn(130, seed=2).bfloat16(),
    )
    numbers, scale = quantize_blocks(weight)
    got = fp8_linear(x, numbers, scale, bias)
    assert got.dtype == torch.bfloat16
    truth = x.double() @ weight.double().T + bias.double()
    assert (got.double() - truth).norm() < 0.05 * truth.norm()


def test_an_outlier_makes_only_its_own_group_coarse():
    x = torch.full((1, 256), 1e-3)
    x[0, 0] = 1e4
    numbers, scale = quantize_blocks(torch.eye(256))
    got = fp8_linear(x, numbers, scale)
    torch.testing.assert_close(got[0, 128:], x[0, 128:], rtol=2**-4, atol=0)
    assert not got[0, 1:128].any()


def test_rows_of_zeros_stay_zeros_and_rows_that_are_not_finite_reach_no_other():
    x = torch.zeros(3, 130)
    x[1, 129] = float("nan")
    x[2] = 1e-31
    numbers, scale = quantize_blocks(randn(3, 130))
    got = fp8_linear(x, numbers, scale)
    assert got[1].isnan().all()
    assert not got[[0, 2]].any()


def test_a_row_is_the_same_bits_among_any_rows():
    numbers, scale = quantize_blocks(randn(64, 128, seed=1))
    assert_rows_stand_alone(lambda rows: fp8_linear(rows, numbers, scale), randn(64, 128), (64,))


def test_what_does_not_fit_is_refused():
    numbers, scale = quantize_blocks(randn(4, 130))
    with pytest.raises(ValueError, match="operands must be float8_e4m3fn"):
        fp8_linear(randn(2, 130), numbers.float(), scale)
    with pytest.raises(ValueError, match=r"need scales \(1, 2\), got \(1, 1\)"):
        fp8_linear(randn(2, 130), numbers, scale[:, :1])
    with pytest.raises(ValueError, match="quantized from finite ones"):
        quantize_blocks(torch.tensor([[float("inf")]]))
