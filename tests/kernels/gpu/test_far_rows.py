"""Rows that begin past 2**31 elements: an offset in int32 would overflow, as at 16k tokens of a vocabulary of 150k."""

import pytest
import torch

from kernels.gpu.linears.linear import linear_triton
from kernels.gpu.rms_norm import rms_norm_triton
from kernels.gpu.rope import rope_triton
from kernels.gpu.swiglu import swiglu_triton
from kernels.gpu.vocabulary.sums import vocab_sums_triton
from tests.kernels.accuracy import randn

WIDTH, APART = 32, 2**30  # a stride that fits int32; the third row begins at 2**31

OPS = {
    "rms_norm": lambda x: rms_norm_triton(x, torch.ones(WIDTH).to(x), eps=1e-5)[0],
    "swiglu": swiglu_triton,
    "rope": lambda x: rope_triton(x[:, None], torch.ones(3, WIDTH, device=x.device)),
    "linear": lambda x: linear_triton(x, torch.ones(3, WIDTH).to(x)),
    "linear_weight": lambda x: linear_triton(torch.ones(3, WIDTH).to(x), x),
    "vocab_sums": lambda x: vocab_sums_triton(x, torch.ones(3, device=x.device), with_moment=False)[
        1
    ],
}


@pytest.fixture(scope="module")
def far() -> torch.Tensor:
    """Three rows; zeros that nobody touches take no memory."""
    x = torch.zeros(2 * APART + WIDTH, dtype=torch.bfloat16).as_strided((3, WIDTH), (APART, 1))
    return x.copy_(randn(3, WIDTH))


@pytest.mark.parametrize("name", OPS)
def test_rows_far_apart_give_the_bits_of_a_copy(name, far, device):
    x = far if device == "cpu" else far.to(device)
    assert torch.equal(OPS[name](x), OPS[name](x.contiguous()))
