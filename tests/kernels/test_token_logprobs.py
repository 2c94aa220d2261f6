import math

import pytest
import torch

from kernels.token_logprobs import (
    VOCAB_BLOCK,
    token_logprobs,
    token_logprobs_reference,
    vocab_sums,
)
from tests.kernels.accuracy import assert_rows_stand_alone, randn

DTYPES = [torch.float32, torch.bfloat16]
# below, at and one past a block of 1024; two blocks; two and a tail
VOCAB_SIZES = [17, 1023, 1024, 1025, 2048, 2500]
INF = float("inf")


def ones(num_rows):
    return torch.ones(num_rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 3.0])
def test_logprobs_are_as_accurate_as_pytorch(temperature, vocab_size, dtype):
    logits = 8 * randn(5, vocab_size, dtype=dtype)
    token_ids = torch.tensor([0, vocab_size - 1, vocab_size // 2, 3, 16])
    got = token_logprobs(logits, token_ids, temperature=temperature)
    peer = token_logprobs_reference(logits, token_ids, temperature=temperature)
    truth = torch.log_softmax(logits.double() / temperature, -1)
    truth = truth.gather(-1, token_ids[:, None]).squeeze(-1)
    assert got.dtype == torch.float32
    budget = 2 * (peer.double() - truth).abs().max() + 5e-6
    assert (got.double() - truth).abs().max() <= budget


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_float64_logits_give_float64_logprobs(vocab_size):
    logits = 8 * randn(3, vocab_size, dtype=torch.float64)
    token_ids = torch.tensor([0, vocab_size - 1, 7])
    got = token_logprobs(logits, token_ids, temperature=0.7)
    expected = token_logprobs_reference(logits, token_ids, temperature=0.7)
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_a_uniform_row_gives_the_logarithm_of_its_vocabulary(vocab_size):
    # far below zero: a missing column read as 0 would swamp the sum
    logits = torch.full((2, vocab_size), -80.0)
    got = token_logprobs(logits, torch.tensor([0, vocab_size - 1]))
    torch.testing.assert_close(got, torch.full((2,), -math.log(vocab_size)))


def test_each_row_has_its_own_temperature():
    logits = randn(1, 40).expand(3, 40)
    token_ids = torch.tensor([4, 4, 4])
    temperatures = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    got = vocab_sums(logits, 1 / temperatures).logprobs(token_ids)
    for row, temperature in enumerate(temperatures.tolist()):
        alone = token_logprobs(logits[:1], token_ids[:1], temperature=temperature)
        assert torch.equal(got[row : row + 1], alone)
    assert len(set(got.tolist())) == 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [17, 1025, 2500])
def test_a_row_is_the_same_bits_among_any_rows_at_any_place(vocab_size, dtype):
    # 131 rows: threads split the buffer in the middle of a row
    logits = 8 * randn(131, vocab_size, dtype=dtype)
    token_ids = (torch.arange(131) * 7) % vocab_size

    def op(rows):  # the last column names the token
        return token_logprobs(rows[:, :-1].to(dtype), rows[:, -1].long(), temperature=0.7)

    assert_rows_stand_alone(op, torch.cat([logits.float(), token_ids[:, None]], 1), (1, 2, 64, 130))


def test_rows_may_lie_apart():
    wide = 8 * randn(6, 3000)
    rows, token_ids = wide[::2, 100:1700], torch.tensor([0, 1599, 1024])
    expected = token_logprobs(rows.contiguous(), token_ids)
    assert torch.equal(token_logprobs(rows, token_ids), expected)


def test_the_logits_are_left_as_they_were():
    logits = randn(3, 40)
    before = logits.clone()
    token_logprobs(logits, torch.zeros(3, dtype=torch.int64))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("peak", [-1e4, 1e4])
def test_huge_logits_neither_overflow_nor_vanish(peak):
    logits = torch.full((1, 1500), peak)
    logits[0, 1200] += 2.0
    got = token_logprobs(logits.expand(2, -1), torch.tensor([1200, 0]))
    total = math.log(1499 + math.e**2)
    torch.testing.assert_close(got, torch.tensor([2.0 - total, -total]))


def test_masked_tokens_have_logprob_minus_infinity_and_the_rest_share_the_mass():
    logits = torch.zeros(1, 2500)
    logits[0, :2400] = -INF  # all of two blocks
    got = token_logprobs(logits.expand(3, -1), torch.tensor([0, 2399, 2400]))
    torch.testing.assert_close(got, torch.tensor([-INF, -INF, -math.log(100)]))


def test_cumulative_sums_end_at_each_block():
    logits = torch.zeros(1, 2 * VOCAB_BLOCK + 3)
    logits[0, 5] = -INF
    got = vocab_sums(logits, ones(1)).cumulative_TJ
    assert got.tolist() == [[1023.0, 2047.0, 2050.0]]


# --- entropy


@pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
def test_entropy_matches_float64(vocab_size):
    logits = 4 * randn(5, vocab_size)
    logprobs = (logits.double() / 0.7).log_softmax(-1)
    expected = -(logprobs.exp() * logprobs).sum(-1)
    got = vocab_sums(logits, ones(5) / 0.7, with_moment=True).entropy()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


def test_entropy_counts_the_tokens_that_are_possible():
    logits = torch.full((3, 1500), -1e4)
    logits[0, 3] = 5.0
    logits[1, [3, 1400]] = -7.0
    logits[2] = 2.0
    got = vocab_sums(logits, ones(3), with_moment=True).entropy()
    torch.testing.assert_close(got, torch.tensor([0.0, math.log(2), math.log(1500)]))


# --- what is refused


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\[T, V\] and token_ids \[T\], got \(2, 4\) and \(3,\)"):
        token_logprobs(torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        token_logprobs(torch.zeros(4), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_a_temperature_that_is_not_positive_is_named(temperature):
    with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
        token_logprobs(
            torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), temperature=temperature
        )
