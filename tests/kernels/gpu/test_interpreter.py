"""The interpreter's fixes: each test fails with the stock interpreter."""

import pytest
import torch
import triton
import triton.language as tl

pytestmark = pytest.mark.usefixtures("interpreter")


@pytest.fixture
def memory(interpreter):
    """The checks; importable only where kernels are interpreted."""
    import tests.kernels.gpu.interpreter as package

    return package


@triton.jit
def _dot_kernel(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    at = i[:, None] * N + i[None, :]
    product = tl.dot(tl.load(a_ptr + at), tl.load(b_ptr + at))
    tl.store(out_ptr + at, product.to(out_ptr.dtype.element_ty))


@triton.jit
def _cast_kernel(x_ptr, out_ptr, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i).to(out_ptr.dtype.element_ty))


@triton.jit
def _arithmetic_kernel(x_ptr, out_ptr, N: tl.constexpr):
    x = tl.load(x_ptr + tl.arange(0, N))
    tl.store(out_ptr + tl.arange(0, N), x * x + tl.max(x, 0) + tl.sum(x, 0))


@triton.jit
def _copy_kernel(x_ptr, out_ptr, size, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < size, other=0.0))


@triton.jit
def _neighbour_kernel(x_ptr, N: tl.constexpr):
    i = tl.program_id(0) * N + tl.arange(0, N)
    tl.store(x_ptr + i, tl.load(x_ptr + (i + N) % (2 * N)))


@triton.jit
def _no_other_kernel(x_ptr, out_ptr, size, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=i < size))


@triton.jit
def _offset_kernel(x_ptr, row, stride):
    tl.store(x_ptr, row * stride)


def test_bfloat16_products_are_those_of_their_values():
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    a, b = a.bfloat16(), b.bfloat16()
    out = torch.empty(16, 16)
    _dot_kernel[(1,)](a, b, out, N=16)
    torch.testing.assert_close(out, a.float() @ b.float())


def test_a_dot_too_small_for_the_tensor_cores_is_refused_as_by_the_compiler():
    small = torch.ones(8, 8, dtype=torch.bfloat16)
    with pytest.raises(Exception, match="K >= 16"):
        _dot_kernel[(1,)](small, small, torch.empty(8, 8), N=8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_casts_round_to_nearest_even_as_pytorch_does(dtype):
    x = torch.randn(1024, generator=torch.Generator().manual_seed(0)) * 30
    x[:4] = torch.tensor(
        [1.00390625, 1.01171875, -0.0, 1e-9]
    )  # ties between two bfloat16, up and down
    out = torch.zeros(1024, dtype=dtype)
    _cast_kernel[(1,)](x, out, N=1024)
    assert torch.equal(out.float(), x.to(dtype).float())


def test_a_cast_to_float8_saturates_as_the_gpu_does():
    x = torch.tensor([1e6, -1e6, 448.0, 460.0])
    out = torch.zeros(4, dtype=torch.float8_e4m3fn)
    _cast_kernel[(1,)](x, out, N=4)
    assert out.float().tolist() == [448.0, -448.0, 448.0, 448.0]


def test_bfloat16_is_added_multiplied_and_reduced_by_value():
    x = torch.tensor([1.0, -2.0, 0.5, 3.0]).bfloat16()
    out = torch.zeros_like(x)
    _arithmetic_kernel[(1,)](x, out, N=4)
    assert torch.equal(out, x * x + x.max() + x.sum())


def test_an_address_past_the_end_of_its_tensor_is_an_error_that_names_the_line(memory):
    x, out = torch.zeros(20), torch.zeros(20)
    with (
        memory.checked(),
        pytest.raises(
            memory.OutOfBounds, match=r"store of 12 element\(s\) outside `out_ptr`.*20..31 of 20"
        ),
    ):
        _copy_kernel[(2,)](x, out, 20, N=16)


def test_an_address_in_another_argument_is_out_of_bounds_too(memory):
    both = torch.zeros(40)
    with memory.checked(), pytest.raises(memory.OutOfBounds, match="outside `x_ptr`"):
        _copy_kernel[(2,)](both[:20], both, 40, N=16)


def test_two_programs_that_touch_an_element_race(memory):
    with memory.checked(), pytest.raises(memory.Race, match="load and store `x_ptr`"):
        _neighbour_kernel[(2,)](torch.zeros(8), N=4)


def test_what_a_masked_load_leaves_undefined_is_nan(memory):
    out = torch.zeros(4)
    with memory.checked():
        _no_other_kernel[(1,)](torch.ones(2), out, 2, N=4)
    assert out.isnan().tolist() == [False, False, True, True]


def test_an_overflow_of_int32_is_an_error():
    with pytest.raises(Exception, match="int32 overflow"):
        _offset_kernel[(1,)](torch.zeros(1), 20_000, 152_000)
