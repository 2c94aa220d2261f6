import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from kernels.rope import Llama3Scaling, rope, rope_table
from tests.kernels.accuracy import assert_as_accurate, assert_rows_stand_alone, randn

pytestmark = pytest.mark.usefixtures("either_path")

# wavelengths from 6 to 45,000: below 64 / 4 kept, above 64 / 1 slowed down, three between blended
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def frequencies(head_dim, **options):
    """Of `rope_table`: the angles at position 1, all at most 1."""
    return rope_table(2, head_dim, **options)[1].chunk(2)[1].double().asin()


def hf_frequencies(kind, **rope):
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=512,
        rope_parameters={"rope_type": kind, "rope_theta": 10000.0, **rope},
    )
    return ROPE_INIT_FUNCTIONS[kind](config, "cpu")[0].double()


def test_llama3_scaling_matches_transformers_in_all_three_bands():
    got = frequencies(32, theta=10000.0, scaling=Llama3Scaling(**LLAMA3))
    torch.testing.assert_close(got, hf_frequencies("llama3", **LLAMA3), rtol=1e-6, atol=0)
    ratio = frequencies(32, theta=10000.0) / got
    is_kept, is_slowed = (ratio - 1).abs() < 1e-5, (ratio - 8).abs() < 1e-4
    assert (is_kept.sum(), is_slowed.sum()) == (2, 11), "the bands must not be empty"


def test_linear_scaling_matches_transformers():
    got = frequencies(32, theta=10000.0, linear_factor=4.0)
    torch.testing.assert_close(got, hf_frequencies("linear", factor=4.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize("position", [0, 1, 511, 131_071])
def test_the_table_holds_the_angles_to_float32_at_every_position(position):
    # in float32 the angle itself would be off by 0.004 at position 131,071
    row = rope_table(131_072, 4, theta=1e6)[position].double()
    angles = [position * 1.0, position * 1e6**-0.5]
    expected = [*map(math.cos, angles), *map(math.sin, angles)]
    torch.testing.assert_close(row, torch.tensor(expected).double(), rtol=0, atol=6e-8)


def test_a_head_is_rotated_in_halves_not_in_pairs():
    # a quarter turn of the plane (0, 2) and none of (1, 3)
    cos_sin = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    got = rope(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]), cos_sin)
    assert got.flatten().tolist() == [-3.0, 2.0, 1.0, 4.0]


def test_rope_matches_transformers_own_rotation():
    cos_sin = rope_table(50, 16, theta=10000.0)[[3, 49, 0]].double()
    q, k = randn(3, 4, 16, dtype=torch.float64), randn(3, 2, 16, seed=1, dtype=torch.float64)
    cos, sin = (half.repeat(1, 2)[None] for half in cos_sin.chunk(2, -1))
    expected = apply_rotary_pos_emb(q.transpose(0, 1)[None], k.transpose(0, 1)[None], cos, sin)
    for x, rotated in zip((q, k), expected, strict=True):
        torch.testing.assert_close(rope(x, cos_sin), rotated[0].transpose(0, 1))


def test_scores_depend_on_the_distance_alone():
    table = rope_table(200, 16, theta=10000.0).double()
    q, k = randn(1, 1, 16, dtype=torch.float64), randn(1, 1, 16, seed=1, dtype=torch.float64)
    near, far = (
        (rope(q, table[p : p + 1]) * rope(k, table[p - 7 : p - 6])).sum() for p in (7, 199)
    )
    torch.testing.assert_close(near, far, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_rows", "num_heads"), [(1, 1), (5, 3), (65, 2)])
def test_rope_is_as_accurate_as_pytorch(num_rows, num_heads, dtype):
    x, cos_sin = randn(num_rows, num_heads, 16, dtype=dtype), rope_table(65, 16, theta=10000.0)
    cos_sin = cos_sin[-num_rows:]

    def turn(x, cos_sin):
        plane = torch.polar(torch.ones(()).to(cos_sin), torch.atan2(*cos_sin.chunk(2, -1)[::-1]))
        first, second = x.to(cos_sin.dtype).chunk(2, -1)
        rotated = torch.complex(first, second) * plane[:, None]
        return torch.cat([rotated.real, rotated.imag], -1)

    peer, truth = turn(x, cos_sin).to(dtype), turn(x, cos_sin.double())
    assert_as_accurate(rope(x, cos_sin), peer=peer, truth=truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_row_is_the_same_bits_among_any_rows_at_any_place(dtype):
    # each row brings its angles along
    cos_sin = rope_table(1001, 18, theta=10000.0)
    heads = randn(1001, 3, 18, dtype=dtype)
    both = torch.cat([heads.flatten(1).float(), cos_sin], 1)

    def op(rows):
        return rope(rows[:, :54].to(dtype).unflatten(1, (3, 18)), rows[:, 54:])

    assert_rows_stand_alone(op, both, (1, 2, 3, 7, 129, 1000, 1001))


def test_bfloat16_is_rounded_once():
    x, cos_sin = randn(9, 2, 16, dtype=torch.bfloat16), rope_table(9, 16, theta=10000.0)
    assert torch.equal(rope(x, cos_sin), rope(x.float(), cos_sin).bfloat16())


def test_the_gradient_turns_back():
    cos_sin = rope_table(9, 16, theta=10000.0).double()
    x = randn(9, 2, 16, dtype=torch.float64).requires_grad_()
    grad = randn(9, 2, 16, seed=1, dtype=torch.float64)
    (got,) = torch.autograd.grad(rope(x, cos_sin), x, grad)
    back = cos_sin * torch.tensor([1.0, -1.0]).double().repeat_interleave(8)
    torch.testing.assert_close(got, rope(grad, back), rtol=1e-12, atol=1e-12)
