import pytest
import torch

from kernels.gpu.rms_norm import rms_norm_backward_triton, rms_norm_triton
from kernels.rms_norm import rms_norm_reference
from tests.kernels.accuracy import assert_as_accurate, assert_rows_stand_alone, randn

EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (1, 64), (33, 65), (3, 577)])
def test_rms_norm_is_as_accurate_as_pytorch(num_rows, width, dtype, device):
    x = (randn(num_rows, width, dtype=dtype) * 3).to(device)
    weight = (1 + 0.2 * randn(width, seed=1, dtype=dtype)).to(device)
    truth = rms_norm_reference(x.double(), weight.double(), eps=EPS)
    peer = rms_norm_reference(x, weight, eps=EPS)
    out, inverse, same = rms_norm_triton(x, weight, eps=EPS)
    assert_as_accurate(out, peer=peer, truth=truth)
    assert same is x
    expected = (x.double().square().mean(-1, keepdim=True) + EPS).rsqrt()
    torch.testing.assert_close(inverse.double(), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_residual_gives_the_bits_of_adding_it_first(dtype, device):
    x, residual, weight = (
        randn(*s, seed=i, dtype=dtype).to(device) for i, s in enumerate([(5, 65), (5, 65), (65,)])
    )
    out, inverse, total = rms_norm_triton(x, weight, eps=EPS, residual=residual)
    assert torch.equal(total, x + residual)
    apart = rms_norm_triton(x + residual, weight, eps=EPS)
    assert torch.equal(out, apart[0])
    assert torch.equal(inverse, apart[1])


def test_heads_sliced_out_of_wider_rows_give_the_bits_of_a_copy(device):
    heads, weight = randn(7, 8, 16).to(device)[:, 4:6], randn(16, seed=1).to(device)
    copied = rms_norm_triton(heads.contiguous(), weight, eps=EPS)
    sliced = rms_norm_triton(heads, weight, eps=EPS)
    assert torch.equal(sliced[0], copied[0])
    assert torch.equal(sliced[1], copied[1])
    grad = randn(7, 2, 16, seed=2).to(device)
    grads = [
        rms_norm_backward_triton(grad, x, weight, copied[1]) for x in (heads, heads.contiguous())
    ]
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_eps_carries_a_row_of_zeros(device):
    out = rms_norm_triton(torch.zeros(2, 4).to(device), torch.ones(4).to(device), eps=1e-6)[0]
    assert not out.any()


def test_a_row_is_the_same_bits_among_any_rows(device):
    x, weight = (
        randn(20, 65, dtype=torch.bfloat16).to(device),
        randn(65, seed=1, dtype=torch.bfloat16).to(device),
    )
    assert_rows_stand_alone(lambda rows: rms_norm_triton(rows, weight, eps=EPS)[0], x, (1, 9))


def test_a_row_of_nan_reaches_no_other(device):
    x, weight = randn(40, 16).to(device), torch.ones(16).to(device)
    x[3] = float("nan")
    out = rms_norm_triton(x, weight, eps=EPS)[0]
    assert out[3].isnan().all()
    assert out.isnan().sum() == 16


@pytest.mark.parametrize("num_rows", [1, 17, 53], ids=["one", "past_a_tile", "past_the_programs"])
def test_gradients_agree_with_float64(num_rows, device, monkeypatch):
    monkeypatch.setattr("kernels.gpu.rms_norm._PARTIAL_SUMS", 2)
    width = 48  # 16 rows per tile
    x, weight, grad = (
        randn(*s, seed=i) for i, s in enumerate([(num_rows, width), (width,), (num_rows, width)])
    )
    grad_sum = randn(num_rows, width, seed=3)
    true = [t.double().requires_grad_() for t in (x, weight)]
    out = rms_norm_reference(*true, eps=EPS)
    torch.autograd.backward([out, true[0] * 1.0], [grad.double(), grad_sum.double()])
    x, weight, grad, grad_sum = (t.to(device) for t in (x, weight, grad, grad_sum))
    inverse = rms_norm_triton(x, weight, eps=EPS)[1]
    got = rms_norm_backward_triton(grad, x, weight, inverse, grad_sum=grad_sum)
    for tensor, expected in zip(got, true, strict=True):
        torch.testing.assert_close(tensor.cpu().double(), expected.grad, rtol=1e-5, atol=3e-5)
    without = rms_norm_backward_triton(grad, x, weight, inverse)[0]
    torch.testing.assert_close(without + grad_sum, got[0], rtol=1e-5, atol=1e-5)


def test_rows_of_none_give_none(device):
    out, inverse, _ = rms_norm_triton(
        torch.zeros(0, 8).to(device), torch.ones(8).to(device), eps=EPS
    )
    assert out.shape == (0, 8)
    assert inverse.shape == (0, 1)
