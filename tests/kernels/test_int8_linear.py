import pytest
import torch

from kernels.int8_linear import int8_linear, int8_linear_reference, quantize_channels
from tests.kernels.accuracy import assert_rows_stand_alone, randn

# one column and one feature, around a vector of 16, past a tile of 3 columns and a block of 24; a model's own
SHAPES = [(1, 1), (15, 3), (16, 4), (17, 7), (33, 26), (576, 50), (1536, 24)]


def quantized(in_features: int, out_features: int) -> tuple[torch.Tensor, torch.Tensor]:
    return quantize_channels(randn(out_features, in_features, seed=1))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 7, 64])
@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_c_and_tensors_agree_bit_for_bit(in_features, out_features, num_rows, request):
    weight, scale = quantized(in_features, out_features)
    x, bias = randn(num_rows, in_features) * 30, randn(out_features, seed=2)
    native = int8_linear(x, weight, scale, bias)
    request.getfixturevalue("use_tensors")
    assert torch.equal(native, int8_linear(x, weight, scale, bias))
    assert native.abs().sum() > 0


def test_a_row_is_the_same_bits_among_any_rows_at_any_place(either_path):
    weight, scale = quantized(48, 53)
    x = randn(131, 48)
    assert_rows_stand_alone(
        lambda rows: int8_linear(rows, weight, scale), x, (1, 2, 3, 4, 5, 6, 7, 64, 131)
    )


@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_the_error_is_that_of_half_a_step_per_activation(either_path, in_features, out_features):
    weight, scale = quantized(in_features, out_features)
    x = randn(9, in_features)
    # as many levels as keep the sum within 32 bits, 15 bits at most
    levels = min(2**15 - 1, (2**31 - 1) // (127 * in_features))
    fine = x.abs().amax(-1, keepdim=True).double() / levels
    coarse = x.double().square().mean(-1, keepdim=True).sqrt() * 6 / 127
    half_step = torch.maximum(fine, coarse) / 2
    sizes = (weight.double().abs().sum(-1) * scale.double())[None]
    truth = int8_linear_reference(x, weight, scale)
    error = (int8_linear(x, weight, scale).double() - truth).abs()
    assert bool((error <= half_step * sizes * 1.01 + truth.abs() * 1e-6).all())


@pytest.mark.parametrize("in_features", [3, 60, 576])
def test_outliers_of_a_row_are_as_exact_as_the_rest(either_path, in_features):
    """A step of max / 127 would round everything else to zero."""
    x = torch.full((7, in_features), 0.5)
    for row in range(7):
        x[row, row * in_features // 7] = -1000.0  # in another place of each: a tile has all of them
    weight = torch.zeros(2, in_features, dtype=torch.int8)
    weight[0] = 1
    weight[1, 0] = 127
    truth = x.double() @ weight.double().T
    error = (int8_linear(x, weight, torch.ones(2)).double() - truth).abs()
    levels = min(2**15 - 1, (2**31 - 1) // (127 * in_features))
    step = max(1000.0 / levels, float(x[0].double().square().mean().sqrt()) * 6 / 127)
    assert bool((error[:, 0] <= step / 2 * in_features).all())
    assert bool((error[:, 1] <= step / 2 * 127).all())


def test_weights_are_within_half_a_step_and_use_all_levels():
    weight = randn(7, 65, seed=3)
    integers, scale = quantize_channels(weight)
    error = (weight.double() - integers.double() * scale.double()[:, None]).abs()
    assert bool((error <= scale.double()[:, None] * 0.5001).all())
    assert integers.abs().amax(-1).tolist() == [127] * 7


@pytest.mark.parametrize("in_features", [3, 576, 1536, 8192, 28672])
def test_the_greatest_sum_does_not_overflow(either_path, in_features):
    weight = torch.full((4, in_features), -127, dtype=torch.int8)
    x = torch.full((3, in_features), 5.0)
    got = int8_linear(x, weight, torch.ones(4))
    half_step = 6 / 127 / 2  # of elements that are all one root mean square
    expected = torch.full((3, 4), -127 * 5.0 * in_features)
    torch.testing.assert_close(got, expected, rtol=half_step * 1.01, atol=0)


def test_zeros_stay_zeros_and_what_is_not_finite_stays_in_its_row(either_path):
    weight, scale = quantized(20, 6)
    x = randn(6, 20)
    alone = int8_linear(x[3:4], weight, scale)
    x[0] = 0
    x[1] = 1e-31  # its inverse would overflow
    x[2, 19] = float("nan")
    x[4, 0] = float("inf")
    x[5, 7] = float("-inf")
    got = int8_linear(x, weight, scale)
    assert got[:2].tolist() == [[0.0] * 6] * 2
    assert bool(got[[2, 4, 5]].isnan().all())
    assert torch.equal(got[3:4], alone)


def test_a_channel_of_zeros_gives_zeros_and_its_bias(either_path):
    weight = randn(3, 16)
    weight[1] = 0
    integers, scale = quantize_channels(weight)
    got = int8_linear(randn(2, 16, seed=4), integers, scale, torch.tensor([0.0, 7.0, 0.0]))
    assert got[:, 1].tolist() == [7.0, 7.0]


def test_bf16_rows_are_read_in_float32_and_rounded_once(either_path):
    weight, scale = quantized(64, 5)
    x = randn(3, 64, dtype=torch.bfloat16)
    got = int8_linear(x, weight, scale)
    assert got.dtype is torch.bfloat16
    assert torch.equal(got, int8_linear(x.float(), weight, scale).bfloat16())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    weight = randn(3, 16)
    weight[2, 5] = bad
    with pytest.raises(ValueError, match="must be quantized from finite ones"):
        quantize_channels(weight)


def test_operands_that_do_not_fit_are_refused_before_c_reads_them():
    weight, scale = quantized(16, 4)
    for rows, w, s, b in (
        (randn(2, 15), weight, scale, None),
        (randn(2, 16), weight, scale[:3], None),
        (randn(2, 16), weight, scale, randn(5)),
    ):
        with pytest.raises(ValueError, match="do not fit weights"):
            int8_linear(rows, w, s, b)
    with pytest.raises(ValueError, match=r"must be int8, got torch\.int32"):
        int8_linear(randn(2, 16), weight.int(), scale)
