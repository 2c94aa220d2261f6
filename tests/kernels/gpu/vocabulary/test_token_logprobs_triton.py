import pytest
import torch

from kernels.gpu.vocabulary.sample import sample_triton
from kernels.gpu.vocabulary.sums import vocab_sums_triton
from kernels.sample import sample_reference
from kernels.token_logprobs import VocabSums
from tests.kernels.accuracy import randn


def sums_of(logits: torch.Tensor, inverse_T: torch.Tensor, device: str) -> VocabSums:
    logits, inverse_T = logits.to(device), inverse_T.to(device)
    maximum, cumulative, moment = vocab_sums_triton(logits, inverse_T, with_moment=True)
    return VocabSums(
        logits_TV=logits,
        inverse_temperature_T=inverse_T,
        maximum_T=maximum,
        cumulative_TJ=cumulative,
        moment_T=moment,
    )


def drawn(sums: VocabSums, uniforms: torch.Tensor) -> list[int]:
    parts = (sums.logits_TV, sums.inverse_temperature_T, sums.maximum_T, sums.cumulative_TJ)
    return sample_triton(*parts, uniforms.to(sums.logits_TV.device)).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1, 1024, 2500])
def test_sums_agree_with_float64_in_fixed_blocks(vocab_size, dtype, device):
    # -50 everywhere but one: a column past the end that counts as logit 0 would outweigh all
    logits = torch.full((3, vocab_size), -50.0)
    logits[1] = randn(vocab_size) * 8
    logits[2, -1] = -40.0
    logits, inverse = logits.to(dtype), torch.tensor([1.0, 2.0, 0.5])
    sums = sums_of(logits, inverse, device)
    scaled = logits.double() * inverse.double()[:, None]
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp()
    expected = torch.stack([b.sum(-1) for b in weights.split(1024, dim=-1)], -1).cumsum(-1)
    torch.testing.assert_close(sums.cumulative_TJ.cpu().double(), expected, rtol=1e-5, atol=0)
    true = torch.distributions.Categorical(logits=scaled)
    torch.testing.assert_close(sums.entropy().cpu().double(), true.entropy(), rtol=1e-5, atol=1e-5)
    tokens = torch.tensor([0, vocab_size // 2, vocab_size - 1])
    logprobs = sums.logprobs(tokens.to(device)).cpu().double()
    torch.testing.assert_close(logprobs, true.log_prob(tokens), rtol=1e-5, atol=1e-5)


def test_masked_tokens_weigh_nothing_even_a_whole_block_of_them(device):
    logits = torch.full((2, 3000), float("-inf"))
    logits[0, [5, 2100]] = 3.0
    logits[1, 2999] = -80.0
    sums = sums_of(logits, torch.ones(2), device)
    assert sums.cumulative_TJ.tolist() == [[1.0, 1.0, 2.0], [0.0, 0.0, 1.0]]
    torch.testing.assert_close(sums.entropy().cpu(), torch.tensor([2.0, 1.0]).log())
    assert drawn(sums, torch.tensor([0.4999, 0.0])) == [5, 2999]
    assert drawn(sums, torch.tensor([0.5, 1 - 2**-24])) == [2100, 2999]


def test_a_row_without_a_number_gives_nan_and_reaches_no_other(device):
    logits = torch.zeros(4, 1100)
    logits[0], logits[1, 7], logits[2, 1050] = float("-inf"), float("nan"), float("inf")
    sums = sums_of(logits, torch.ones(4), device)
    assert sums.logprobs(torch.zeros(4, dtype=torch.int64, device=device)).isnan().tolist() == [
        True,
        True,
        True,
        False,
    ]


def test_tokens_are_drawn_in_the_order_of_their_ids_as_the_reference_does(device):
    logits = randn(1, 2500) * 4
    logits[0, 1024:2048] -= 100  # a block that hardly weighs
    uniforms = torch.tensor([0.0, 0.1, 0.35, 0.62, 0.8, 0.97, 0.9999])
    rows = logits.expand(len(uniforms), -1).contiguous()
    sums = sums_of(rows, torch.full((len(uniforms),), 1.25), device)
    weights = (logits[0].double() * 1.25).softmax(-1)
    assert drawn(sums, uniforms) == [sample_reference(weights, float(u)) for u in uniforms]


def test_a_uniform_on_an_edge_belongs_to_the_token_after_it(device):
    # four equal weights, of two blocks: edges at 0.25, 0.5 and 0.75 exactly
    logits = torch.full((1, 1026), float("-inf"))
    logits[0, [0, 1023, 1024, 1025]] = 0.0
    uniforms = torch.tensor([0.0, 0.25 - 2**-24, 0.25, 0.5, 0.75])
    sums = sums_of(logits.expand(5, -1).contiguous(), torch.ones(5), device)
    assert drawn(sums, uniforms) == [0, 0, 1023, 1024, 1025]


def test_a_rounding_overflow_takes_the_last_token_of_positive_weight(device):
    logits = torch.full((1, 2500), float("-inf"))
    logits[0, [3, 1500]] = 0.0
    sums = sums_of(logits, torch.ones(1), device)
    assert drawn(sums, torch.tensor([1.0])) == [1500]  # more than any uniform


def test_rows_of_none_give_none(device):
    sums = sums_of(torch.zeros(0, 5), torch.zeros(0), device)
    assert sums.cumulative_TJ.shape == (0, 1)
    assert drawn(sums, torch.zeros(0)) == []
