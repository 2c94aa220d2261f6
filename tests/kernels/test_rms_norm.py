import pytest
import torch
from torch.nn import functional

from kernels.rms_norm import rms_norm, rms_norm_reference
from tests.kernels.accuracy import assert_as_accurate, assert_rows_stand_alone, randn

pytestmark = pytest.mark.usefixtures("either_path")

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (1, 64), (3, 65), (5, 577), (129, 48)])
def test_rms_norm_is_as_accurate_as_pytorch(num_rows, width, dtype):
    x = randn(num_rows, width, dtype=dtype) * 3
    weight = 1 + 0.2 * randn(width, seed=1, dtype=dtype)
    truth = rms_norm_reference(x.double(), weight.double(), eps=EPS)
    peer = rms_norm_reference(x, weight, eps=EPS)
    assert_as_accurate(rms_norm(x, weight, eps=EPS), peer=peer, truth=truth)


def test_the_reference_is_pytorchs_rms_norm():
    x, weight = randn(3, 65, dtype=torch.float64), randn(65, seed=1, dtype=torch.float64)
    expected = functional.rms_norm(x, (65,), weight, EPS)
    torch.testing.assert_close(rms_norm_reference(x, weight, eps=EPS), expected)
    torch.testing.assert_close(rms_norm(x, weight, eps=EPS), expected)


def test_the_result_is_rounded_before_the_weight_scales_it_as_hugging_face_does():
    # 1 / sqrt(0.625) = 1.26491 rounds to 1.265625; times 41 that is 51.89, near 52; unrounded 51.86, near 51.75
    x = torch.tensor([[1.0, 0.5]], dtype=torch.bfloat16)
    weight = torch.full((2,), 41.0, dtype=torch.bfloat16)
    assert rms_norm(x, weight, eps=0.0).tolist() == [[52.0, 26.0]]


def test_eps_carries_a_row_of_zeros():
    x = torch.zeros(2, 4)
    x[1, 0] = 2e-3  # mean of squares 1e-6, as large as eps
    got = rms_norm(x, torch.ones(4), eps=1e-6)
    assert not got[0].any()
    torch.testing.assert_close(got[1, 0], torch.tensor(2**0.5))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 65])
def test_a_row_is_the_same_bits_among_any_rows_at_any_place(width, dtype):
    weight = randn(width, seed=1, dtype=dtype)
    # 1001 rows: threads split the buffer in the middle of a row
    x = randn(1001, width, dtype=dtype)
    counts = (1, 2, 3, 7, 129, 1000, 1001)
    assert_rows_stand_alone(lambda rows: rms_norm(rows, weight, eps=EPS), x, counts)


def test_heads_sliced_out_of_wider_rows_give_the_bits_of_a_copy():
    qkv = randn(7, 8, 16)
    heads, weight = qkv[:, 4:6], randn(16, seed=1)
    got = rms_norm(heads, weight, eps=EPS)
    assert torch.equal(got, rms_norm(heads.contiguous(), weight, eps=EPS))
    assert torch.equal(got[3:4], rms_norm(heads[3:4], weight, eps=EPS))
    torch.testing.assert_close(got, rms_norm_reference(heads, weight, eps=EPS))


@pytest.mark.parametrize("shape", [(1, 5), (7, 65), (3, 4, 16)])
def test_gradients_match_autograd_of_the_reference_in_float64(shape):
    x = randn(*shape, dtype=torch.float64).requires_grad_()
    weight = randn(shape[-1], seed=1, dtype=torch.float64).requires_grad_()
    grad = randn(*shape, seed=2, dtype=torch.float64)
    got = torch.autograd.grad(rms_norm(x, weight, eps=EPS), [x, weight], grad)
    expected = torch.autograd.grad(rms_norm_reference(x, weight, eps=EPS), [x, weight], grad)
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_as_accurate_as_pytorchs(dtype):
    x, weight, grad = (
        randn(*s, seed=i, dtype=dtype) for i, s in enumerate([(9, 65), (65,), (9, 65)])
    )

    def gradients(op, *tensors):
        leaves = [t.clone().requires_grad_() for t in tensors]
        return torch.autograd.grad(op(*leaves, eps=EPS), leaves, grad.to(tensors[0].dtype))

    truth = gradients(rms_norm_reference, x.double(), weight.double())
    peer = gradients(rms_norm_reference, x, weight)
    for g, p, t in zip(gradients(rms_norm, x, weight), peer, truth, strict=True):
        assert_as_accurate(g, peer=p, truth=t)
