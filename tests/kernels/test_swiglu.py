import pytest
import torch
from torch.nn import functional

from kernels.swiglu import swiglu, swiglu_reference
from tests.kernels.accuracy import assert_as_accurate, assert_rows_stand_alone, randn

pytestmark = pytest.mark.usefixtures("either_path")

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 1), (1, 33), (5, 128), (129, 65)])
def test_swiglu_is_as_accurate_as_pytorch(num_rows, width, dtype):
    gate_up = 4 * randn(num_rows, 2 * width, dtype=dtype)
    truth = swiglu_reference(gate_up.double())
    assert_as_accurate(swiglu(gate_up), peer=swiglu_reference(gate_up), truth=truth)


def test_the_gate_comes_first():
    # silu(0) = 0 whatever is above it; silu(1) = 0.7310586
    got = swiglu(torch.tensor([[0.0, 1.0, 5.0, 10.0]]))
    torch.testing.assert_close(got, torch.tensor([[0.0, 7.310586]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gates_whose_exponential_overflows_are_closed_or_open(dtype):
    gate = torch.tensor([-1e4, -100.0, -88.8, 0.0, 88.8, 100.0, 1e4], dtype=dtype)
    gate_up = torch.stack([gate, torch.full_like(gate, 2.0)]).T.requires_grad_()
    got = swiglu(gate_up)
    torch.testing.assert_close(got.squeeze(1), 2 * gate.clamp(min=0), atol=1e-30, rtol=1e-6)
    (grad,) = torch.autograd.grad(got.sum(), gate_up)
    expected = torch.tensor([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0], dtype=dtype)
    torch.testing.assert_close(grad[:, 0], expected, atol=1e-30, rtol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [64, 65])
def test_a_row_is_the_same_bits_among_any_rows_at_any_place(width, dtype):
    x = 3 * randn(1001, 2 * width, dtype=dtype)
    assert_rows_stand_alone(swiglu, x, (1, 2, 3, 7, 129, 1000, 1001))


@pytest.mark.parametrize("num_rows", [1001, 1003, 1007])
def test_a_thread_that_starts_within_a_row_changes_no_bit(num_rows):
    # rows of gates at which torch's own silu differs between its vector code and its scalar code
    gates = torch.linspace(-6, 6, 4096)
    scalar = torch.cat([functional.silu(gate) for gate in gates.split(1)])
    hard = gates[functional.silu(gates) != scalar]
    gates = hard if len(hard) else gates
    row = torch.cat([gates[torch.arange(65) % len(gates)], torch.ones(65)])
    got = swiglu(row.repeat(num_rows, 1))
    assert torch.equal(got, got[:1].expand_as(got))


def test_bfloat16_is_rounded_once():
    gate_up = 3 * randn(5, 66, dtype=torch.bfloat16)
    assert torch.equal(swiglu(gate_up), swiglu(gate_up.float()).bfloat16())


@pytest.mark.parametrize("shape", [(1, 2), (7, 66)])
def test_gradients_match_autograd_of_the_reference_in_float64(shape):
    gate_up = (3 * randn(*shape, dtype=torch.float64)).requires_grad_()
    grad = randn(shape[0], shape[1] // 2, seed=1, dtype=torch.float64)
    got = torch.autograd.grad(swiglu(gate_up), gate_up, grad)
    expected = torch.autograd.grad(swiglu_reference(gate_up), gate_up, grad)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_are_as_accurate_as_pytorchs(dtype):
    gate_up, grad = 3 * randn(9, 66, dtype=dtype), randn(9, 33, seed=1, dtype=dtype)

    def gradient(op, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(op(x), x, grad.to(x.dtype))[0]

    assert_as_accurate(
        gradient(swiglu, gate_up),
        peer=gradient(swiglu_reference, gate_up),
        truth=gradient(swiglu_reference, gate_up.double()),
    )


def test_the_input_is_left_as_it_was():
    gate_up = randn(3, 8)
    before = gate_up.clone()
    swiglu(gate_up)
    assert torch.equal(gate_up, before)
