import pytest
import torch
from torch.nn import functional

import kernels.linear
from kernels.linear import linear, linear_reference
from tests.kernels.accuracy import assert_as_accurate, assert_rows_stand_alone, randn

pytestmark = pytest.mark.usefixtures("either_path")

DTYPES = [torch.float32, torch.bfloat16]
# attention's two GEMMs, a square, a vocabulary, a value head. Every model's in features are a multiple of 16: in
# float32, MKL's GEMM from 33 features to 7 looks at the address of a row, and no tile can help that
SHAPES = [(16, 64), (64, 16), (64, 64), (64, 260), (48, 1)]
TILES = [0, 1, 8, 64]


def use_tile(monkeypatch, tile):
    monkeypatch.setattr(kernels.linear, "gemm_row_tile", lambda *shape: tile)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("in_features", "out_features"), SHAPES)
def test_a_row_is_the_same_bits_among_any_rows_at_any_place(in_features, out_features, dtype):
    weight = randn(out_features, in_features, seed=1, dtype=dtype)
    bias = randn(out_features, seed=2, dtype=dtype)
    x = randn(323, in_features, dtype=dtype)
    counts = (*range(1, 13), 17, 31, 63, 64, 65, 130, 323)
    assert_rows_stand_alone(lambda rows: linear(rows, weight, bias), x, counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_feel_its_neighbours(dtype):
    weight = randn(33, 64, seed=1, dtype=dtype)
    x = randn(5, 64, dtype=dtype)
    expected = linear(x, weight)[2]
    x[[0, 1, 3]] = 1e30
    x[4] = float("nan")
    assert torch.equal(linear(x, weight)[2], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("num_rows", [1, 7, 65])
def test_linear_is_as_accurate_as_pytorch(num_rows, has_bias, dtype):
    x, weight = randn(num_rows, 64, dtype=dtype), randn(33, 64, seed=1, dtype=dtype)
    bias = randn(33, seed=2, dtype=dtype) if has_bias else None
    truth = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    got = linear(x, weight, bias)
    assert_as_accurate(got, peer=linear_reference(x, weight, bias), truth=truth)


@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 130])
def test_without_a_tile_every_gemm_has_exactly_64_rows(monkeypatch, use_tensors, num_rows):
    use_tile(monkeypatch, 0)
    calls = []

    def counted(x, weight, bias=None, original=functional.linear):
        calls.append(x.shape[0])
        return original(x, weight, bias)

    monkeypatch.setattr(functional, "linear", counted)
    x, weight, bias = randn(num_rows, 16), randn(5, 16, seed=1), randn(5, seed=2)
    got = linear(x, weight, bias)
    assert calls == [64] * -(-num_rows // 64)
    torch.testing.assert_close(got, x @ weight.T + bias)


def test_a_gemm_that_depends_on_its_number_of_rows_is_made_whole_by_exact_tiles(
    monkeypatch, use_tensors
):
    use_tile(monkeypatch, 0)

    def faulty(x, weight, bias=None):
        return (x[:, None] * weight).sum(-1) + x.shape[0]

    monkeypatch.setattr(functional, "linear", faulty)
    weight = randn(5, 16, seed=1)
    assert_rows_stand_alone(lambda x: linear(x, weight), randn(193, 16), (1, 63, 64, 65, 129))


@pytest.mark.parametrize("tile", TILES)
def test_rows_are_padded_to_the_tile_and_the_padding_is_left_out(monkeypatch, tile):
    use_tile(monkeypatch, tile)
    x, weight, bias = randn(9, 16), randn(5, 16, seed=1), randn(5, seed=2)
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + bias)


@pytest.mark.parametrize("tile", TILES)
def test_no_rows_give_no_rows(monkeypatch, tile):
    use_tile(monkeypatch, tile)
    assert linear(torch.zeros(0, 16), torch.zeros(5, 16)).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("num_rows", [1, 65])
def test_gradients_match_the_formula(monkeypatch, tile, num_rows, dtype):
    use_tile(monkeypatch, tile)
    x, weight, bias, grad = (
        randn(*shape, seed=seed, dtype=dtype)
        for seed, shape in enumerate([(num_rows, 16), (5, 16), (5,), (num_rows, 5)])
    )
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    got = torch.autograd.grad(linear(*leaves), leaves, grad)
    for actual, expected in zip(got, (grad @ weight, grad.T @ x, grad.sum(0)), strict=True):
        tolerance = 1e-12 if dtype is torch.float64 else 1e-5
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
