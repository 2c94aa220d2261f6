import pytest
import torch

from kernels.philox import philox_uniform
from kernels.sample import keep_top, sample, sample_reference
from kernels.token_logprobs import VOCAB_BLOCK, VocabSums, vocab_sums
from tests.kernels.accuracy import randn

INF = float("inf")
BELOW_ONE = 1 - 2.0**-24  # the greatest uniform


def sums_of(weights_BV):
    """The sums of hand-made weights, as they are."""
    blocks = weights_BV.split(VOCAB_BLOCK, dim=-1)
    cumulative = torch.stack([block.sum(-1) for block in blocks], -1).cumsum(-1)
    return sums_with(weights_BV, cumulative)


def sums_with(weights_BV, cumulative_BJ):
    num_rows = len(weights_BV)
    return VocabSums(
        logits_TV=weights_BV.log(),
        inverse_temperature_T=torch.ones(num_rows, dtype=weights_BV.dtype),
        maximum_T=torch.zeros(num_rows, dtype=weights_BV.dtype),
        cumulative_TJ=cumulative_BJ,
    )


def draw(weights, *uniforms):
    """The token of each uniform, all over the same weights, in one batch."""
    weights = torch.as_tensor(weights, dtype=torch.float32)
    return sample(
        sums_of(weights.expand(len(uniforms), -1)), torch.tensor(uniforms, dtype=torch.float32)
    ).tolist()


def sparse(vocab_size, weights):
    row = torch.zeros(vocab_size)
    for token, weight in weights.items():
        row[token] = weight
    return row


# --- sample


def test_a_token_is_drawn_when_its_cumulative_weight_exceeds_the_uniform():
    weights = [1.0, 2.0, 1.0]
    assert draw(weights, 0.0, 0.2499999, 0.25, 0.7499999, 0.75, BELOW_ONE) == [0, 0, 1, 1, 2, 2]


def test_tokens_of_weight_zero_are_never_drawn():
    weights = [0.0, 0.0, 3.0, 0.0, 1.0, 0.0]
    assert draw(weights, 0.0, 0.7499999, 0.75, BELOW_ONE) == [2, 2, 4, 4]


def test_a_single_token_is_always_drawn():
    for token in (0, 1023, 1024, 2047, 2048, 2499):
        assert draw(sparse(2500, {token: 0.3}), 0.0, 0.5, BELOW_ONE) == [token] * 3


def test_blocks_of_weight_zero_are_skipped():
    weights = sparse(5 * VOCAB_BLOCK, {1500: 1.0, 3 * VOCAB_BLOCK + 7: 1.0})
    got = draw(weights, 0.0, 0.4999999, 0.5, BELOW_ONE)
    assert got == [1500, 1500, 3 * VOCAB_BLOCK + 7, 3 * VOCAB_BLOCK + 7]


def test_the_tail_block_is_reached_and_not_left():
    weights = sparse(2 * VOCAB_BLOCK + 3, {0: 1.0, 1024: 1.0, 2048: 1.0, 2049: 1.0})
    got = draw(weights, 0.25, 0.4999999, 0.5, 0.75, BELOW_ONE)
    assert got == [1024, 1024, 2048, 2049, 2049]


def test_the_last_token_of_the_vocabulary_can_be_drawn():
    assert draw(sparse(1025, {3: 1.0, 1024: 1.0}), 0.5, BELOW_ONE) == [1024, 1024]


def test_every_boundary_agrees_with_the_reference():
    # every third token, some of weight 2, to a sum of 1024: exact in float32, and k / 1024 lies on every boundary
    weights = torch.zeros(2500)
    weights[1::3] = 1
    weights[4:573:3] = 2
    weights[2498] += 1024 - weights.sum()
    assert (weights.sum(), weights[2498]) == (1024, 1)
    got = sample(sums_of(weights.expand(1024, -1)), torch.arange(1024) / 1024)
    expected = torch.arange(2500).repeat_interleave(weights.long())
    assert torch.equal(got, expected)
    for k in (0, 1, 2, 511, 512, 1023):
        assert sample_reference(weights, k / 1024) == expected[k]


@pytest.mark.parametrize("vocab_size", [1000, 2500])
def test_draws_agree_with_the_reference_off_the_boundaries(vocab_size):
    logits = 3 * randn(40, vocab_size, dtype=torch.float64)
    sums = vocab_sums(logits, torch.full((40,), 1 / 0.8, dtype=torch.float64))
    uniforms = (torch.arange(40) + 0.5) / 40
    got = sample(sums, uniforms)
    for row in range(40):
        weights = (logits[row] / 0.8).softmax(-1)
        assert got[row] == sample_reference(weights, uniforms[row].item())


def rounded(weights, cumulative):
    """Block sums that rounding has set apart from the running sum within the block."""
    weights = torch.tensor([weights]) if isinstance(weights, list) else weights[None]
    return sums_with(weights, torch.tensor([cumulative]))


def test_a_rounding_overflow_takes_the_last_token_of_positive_weight():
    sums = rounded([1.0, 1.0, 0.0], [2.001])
    assert sample(sums, torch.tensor([BELOW_ONE])).tolist() == [1]


def test_a_rounding_overflow_within_a_block_stays_in_that_block():
    weights = sparse(2500, {3: 1.0, 9: 1.0, 1024: 1.0, 2048: 1.0})
    sums = rounded(weights, [2.001, 3.001, 4.001])
    assert sample(sums, torch.tensor([2.0005 / 4.001])).tolist() == [9]


def test_a_rounding_overflow_of_the_tail_block_stays_in_the_vocabulary():
    weights = sparse(2500, {3: 1.0, 1024: 1.0, 2499: 1.0})
    sums = rounded(weights, [1.0, 2.0, 3.001])
    assert sample(sums, torch.tensor([BELOW_ONE])).tolist() == [2499]


def test_the_reference_takes_the_last_positive_token_when_none_exceeds():
    assert sample_reference(torch.tensor([0.0, 1.0, 1.0, 0.0]), 1.0) == 2


def test_a_row_draws_the_same_token_in_any_batch():
    logits = 2 * randn(33, 2500)
    uniforms = (torch.arange(33) + 0.5) / 33
    inverse = torch.ones(33, dtype=torch.float64)
    whole = sample(vocab_sums(logits, inverse), uniforms)
    assert len(set(whole.tolist())) > 20
    for rows in (slice(0, 1), slice(7, 9), slice(32, 33), slice(1, 33)):
        part = sample(vocab_sums(logits[rows], inverse[rows]), uniforms[rows])
        assert torch.equal(part, whole[rows])


def test_frequencies_match_the_probabilities():
    # six tokens, in three blocks
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.039, 0.001])
    logits = torch.full((2400,), -INF)
    logits[::400] = probabilities.log()
    count = 20_000
    keys = torch.tensor([[7, 1, 0]]).expand(count, 3)
    uniforms = philox_uniform(keys, torch.arange(count))
    sums = vocab_sums(logits.expand(1000, -1), torch.ones(1000, dtype=torch.float64))
    tokens = torch.cat([sample(sums, part) for part in uniforms.split(1000)])
    frequencies = torch.bincount(tokens, minlength=2400)[::400]
    assert frequencies.sum() == count
    sigma = (count * probabilities * (1 - probabilities)).sqrt()
    assert ((frequencies - count * probabilities).abs() < 4 * sigma).all()


# --- keep_top


def kept(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The tokens that `keep_top` leaves of one row."""
    row = torch.as_tensor(logits, dtype=torch.float32)[None]
    out = keep_top(
        row,
        temperatures_B=torch.tensor([temperature]),
        top_k_B=torch.tensor([top_k]),
        top_p_B=torch.tensor([top_p]),
        min_p_B=torch.tensor([min_p]),
    )
    is_kept = out != -INF
    assert torch.equal(out[is_kept], row[is_kept]), "kept logits stay as they were"
    return is_kept[0].nonzero().flatten().tolist()


PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])
LOGITS = PROBABILITIES.log() + 5


def test_without_bounds_everything_is_kept():
    assert kept(LOGITS) == [0, 1, 2, 3]
    # in float32 the first alone has all the mass
    assert kept([50.0, 0.0, 0.0]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("top_k", "expected"),
    [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])],
)
def test_top_k_keeps_the_k_most_probable(top_k, expected):
    assert kept(LOGITS, top_k=top_k) == expected


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (4, [0, 1, 2, 4])]
)
def test_ties_of_top_k_go_to_the_smaller_id(top_k, expected):
    assert kept([1.0, 3.0, 3.0, 1.0, 3.0], top_k=top_k) == expected
    assert kept(torch.zeros(5000), top_k=top_k) == [0, 1, 2, 3][:top_k]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.0, [1]),
        (0.39, [1]),
        (0.41, [1, 3]),
        (0.69, [1, 3]),
        (0.71, [1, 2, 3]),
        (0.95, [0, 1, 2, 3]),
    ],
)
def test_top_p_keeps_the_token_that_reaches_p(top_p, expected):
    assert kept(LOGITS, top_p=top_p) == expected


def test_ties_of_top_p_go_to_the_smaller_id():
    assert kept(torch.zeros(4), top_p=0.6) == [0, 1, 2]


@pytest.mark.parametrize(
    ("min_p", "expected"),
    [(0.2, [0, 1, 2, 3]), (0.26, [1, 2, 3]), (0.51, [1, 3]), (0.76, [1]), (1.0, [1])],
)
def test_min_p_is_a_share_of_the_greatest_probability(min_p, expected):
    assert kept(LOGITS, min_p=min_p) == expected


def test_top_p_counts_the_mass_of_what_top_k_kept():
    # 0.4 of 0.7 is 0.57: it reaches 0.5 alone only after top-k
    assert kept(LOGITS, top_p=0.5) == [1, 3]
    assert kept(LOGITS, top_p=0.5, top_k=2) == [1]


def test_bounds_combine_by_the_strictest():
    assert kept(LOGITS, top_k=3, top_p=0.95, min_p=0.6) == [1, 3]
    assert kept(LOGITS, top_k=2, top_p=0.95, min_p=0.1) == [1, 3]
    assert kept(LOGITS, top_k=3, top_p=0.3, min_p=0.1) == [1]


def test_probabilities_are_those_at_the_rows_temperature():
    # 0.3 / 0.4 = 0.75, squared 0.56
    assert kept(LOGITS, min_p=0.7) == [1, 3]
    assert kept(LOGITS, min_p=0.7, temperature=0.5) == [1]
    # squares sum to 0.3: the first has 0.53 of it
    assert kept(LOGITS, top_p=0.5, temperature=0.5) == [1]


def test_masked_tokens_stay_masked():
    logits = LOGITS.clone()
    logits[1] = -INF
    assert kept(logits) == [0, 2, 3]
    assert kept(logits, top_k=2) == [2, 3]
    assert kept(logits, top_p=0.4) == [3]
    # mass 3 / 6, 2 / 6, 1 / 6
    assert kept(logits, top_p=0.51) == [2, 3]


def test_each_row_has_its_own_bounds():
    out = keep_top(
        LOGITS.expand(5, 4),
        temperatures_B=torch.tensor([1.0, 1.0, 1.0, 0.5, 1.0]),
        top_k_B=torch.tensor([0, 1, 0, 0, 0]),
        top_p_B=torch.tensor([1.0, 1.0, 0.71, 1.0, 1.0]),
        min_p_B=torch.tensor([0.0, 0.0, 0.0, 0.7, 0.7]),
    )
    got = [(row != -INF).nonzero().flatten().tolist() for row in out]
    assert got == [[0, 1, 2, 3], [1], [1, 2, 3], [1], [1, 3]]


def test_bfloat16_logits_stay_bfloat16():
    logits = LOGITS[None].bfloat16()
    bounds = {"temperatures_B": torch.ones(1), "top_p_B": torch.ones(1), "min_p_B": torch.zeros(1)}
    out = keep_top(logits, top_k_B=torch.tensor([2]), **bounds)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out[0, [1, 3]], logits[0, [1, 3]])
