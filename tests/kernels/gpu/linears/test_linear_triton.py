import pytest
import torch

import kernels.gpu.linears.linear
from kernels.gpu.linears.linear import linear_triton
from kernels.linear import linear_reference
from tests.kernels.accuracy import assert_as_accurate, assert_rows_stand_alone, randn

# rows past a tile of 128, columns past one of 64, inner past one of 64
SHAPES = [(1, 1, 1), (130, 65, 70), (3, 200, 128)]


def operands(num_rows: int, width: int, columns: int, dtype: torch.dtype, device: str):
    shapes = [(num_rows, width), (columns, width), (columns,)]
    return [randn(*s, seed=i, dtype=dtype).to(device) for i, s in enumerate(shapes)]


@pytest.fixture(params=["pointers", "descriptors"])
def way(request, monkeypatch) -> str:
    monkeypatch.setattr(
        kernels.gpu.linears.linear,
        "has_tensor_descriptors",
        lambda device: request.param == "descriptors",
    )
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_rows", "columns", "width"), SHAPES)
def test_linear_is_as_accurate_as_pytorch(num_rows, columns, width, dtype, way, device):
    x, weight, bias = operands(num_rows, width, columns, dtype, device)
    for b in (None, bias):
        truth = linear_reference(x.double(), weight.double(), None if b is None else b.double())
        assert_as_accurate(
            linear_triton(x, weight, b), peer=linear_reference(x, weight, b), truth=truth
        )


def test_the_sum_with_the_bias_is_rounded_once(way, device):
    # 1 + 2**-9 is 1 in bfloat16; with the bias of 2**-8 it is 1 + 2**-7, but 1 + 2**-8 alone would be 1
    x, weight = torch.zeros(1, 16), torch.ones(1, 16)
    x[0, 0], x[0, 1] = 1.0, 2**-9
    inputs = (x, weight, torch.tensor([2**-8]))
    got = linear_triton(*(t.bfloat16().to(device) for t in inputs))
    assert got.item() == 1 + 2**-7


def test_logits_may_stay_in_float32(way, device):
    x, weight, _ = operands(5, 64, 70, torch.bfloat16, device)
    got = linear_triton(x, weight, out_dtype=torch.float32)
    torch.testing.assert_close(got, x.float() @ weight.float().T, rtol=1e-5, atol=1e-5)
    assert torch.equal(got.bfloat16(), linear_triton(x, weight))


def test_a_row_is_the_same_bits_among_any_rows(way, device):
    x, weight, bias = operands(140, 70, 65, torch.bfloat16, device)
    assert_rows_stand_alone(lambda rows: linear_triton(rows, weight, bias), x, (1, 129))


def test_descriptors_give_the_bits_of_pointers(device, monkeypatch):
    x, weight, bias = operands(130, 72, 65, torch.bfloat16, device)
    by_pointers = linear_triton(x, weight, bias)
    monkeypatch.setattr(kernels.gpu.linears.linear, "has_tensor_descriptors", lambda device: True)
    assert torch.equal(linear_triton(x, weight, bias), by_pointers)


def test_every_program_takes_several_tiles(device, monkeypatch):
    x, weight, bias = operands(130, 16, 200, torch.float32, device)
    expected = linear_triton(x, weight, bias)
    monkeypatch.setattr(kernels.gpu.linears.linear, "num_multiprocessors", lambda device: 1)
    assert torch.equal(linear_triton(x, weight, bias), expected)


def test_strided_rows_and_none_are_taken(device):
    x, weight, _ = operands(6, 40, 9, torch.float32, device)
    strided = x[::2, :32]
    expected = linear_triton(strided.contiguous(), weight[:, :32].contiguous())
    assert torch.equal(linear_triton(strided, weight[:, :32]), expected)
    assert linear_triton(x[:0], weight).shape == (0, 9)
