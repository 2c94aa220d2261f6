import math

import pytest
import torch

from rl.algorithms.base.config import CorrectionLevel, CorrectionMode
from rl.algorithms.base.correction import Corrector, effective_fraction


def weights(corrector: Corrector, log_ratios: list[float], sample_ids: list[int]) -> list[float]:
    rollout = torch.full((len(log_ratios),), -3.0, dtype=torch.float64)
    old = rollout + torch.tensor(log_ratios, dtype=torch.float64)
    return corrector(old, rollout, torch.tensor(sample_ids)).tolist()


def test_weights_are_the_ratio_of_probabilities_up_to_the_limit():
    got = weights(Corrector(max_weight=2.0), [math.log(r) for r in (1, 2, 9, 0.25)], [0, 0, 1, 1])
    assert got == pytest.approx([1.0, 2.0, 2.0, 0.25])


def test_policies_that_agree_bit_for_bit_weigh_exactly_one():
    logprobs = torch.tensor([-0.1, -30.0, -1e-8])
    for level in CorrectionLevel:
        corrector = Corrector(
            max_weight=1.0, level=level, max_mean_log_ratio=1e-9, max_sample_k3=1e-9
        )
        got = corrector(logprobs, logprobs.clone(), torch.tensor([0, 0, 1]))
        assert got.tolist() == [1.0] * 3


def test_a_ratio_that_would_overflow_is_truncated_first():
    for mode, expected in ((CorrectionMode.truncate, 3.0), (CorrectionMode.mask, 0.0)):
        for level in CorrectionLevel:
            corrector = Corrector(max_weight=3.0, mode=mode, level=level, max_sample_k3=1e300)
            assert weights(corrector, [1000.0], [0]) == pytest.approx([expected])


def test_a_logprob_that_is_not_a_number_stays_one():
    got = weights(Corrector(max_weight=3.0), [math.nan, 0.0], [0, 0])
    assert math.isnan(got[0])
    assert got[1] == 1.0


def test_a_sequence_has_one_weight_the_product_of_its_tokens():
    corrector = Corrector(max_weight=4.0, level=CorrectionLevel.sequence)
    # sample 5: 1.5 * 2 = 3; sample 7: 3 * 3 = 9, truncated
    log_ratios = [math.log(r) for r in (1.5, 2.0, 3.0, 3.0)]
    assert weights(corrector, log_ratios, [5, 5, 7, 7]) == pytest.approx([3.0, 3.0, 4.0, 4.0])


def test_a_mask_leaves_out_what_lies_outside_its_bounds_and_keeps_the_weight_within():
    corrector = Corrector(max_weight=2.0, min_weight=0.5, mode=CorrectionMode.mask)
    log_ratios = [math.log(r) for r in (0.4, 0.6, 1.9, 2.1)]
    assert weights(corrector, log_ratios, [0, 0, 0, 0]) == pytest.approx([0.0, 0.6, 1.9, 0.0])


def test_a_geometric_veto_takes_the_whole_sample_and_sees_both_directions():
    corrector = Corrector(max_weight=0.0, max_mean_log_ratio=0.1)
    # means 0.15, -0.15, 0 of two that cancel, and 0.08 whose sum is 0.16
    log_ratios = [0.3, 0.0, -0.3, 0.0, 0.4, -0.4, 0.08, 0.08]
    got = weights(corrector, log_ratios, [0, 0, 1, 1, 2, 2, 3, 3])
    assert got == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]


def test_a_k3_veto_sees_differences_that_cancel_in_the_mean():
    corrector = Corrector(max_weight=0.0, max_sample_k3=0.05)
    # (cosh 0.4 - 1) = 0.081; a lone 0.3 of two tokens: 0.0249
    log_ratios = [0.4, -0.4, 0.3, 0.0]
    assert weights(corrector, log_ratios, [0, 0, 1, 1]) == [0.0, 0.0, 1.0, 1.0]


def test_the_effective_fraction_is_kishs():
    # weights 1, 1, 2, 0: (4)^2 / (4 * 6)
    assert effective_fraction(1.0, 1.5) == pytest.approx(16 / 24)
    assert effective_fraction(0.0, 0.0) == 0.0
