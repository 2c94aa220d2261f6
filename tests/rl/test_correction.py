import math

import pytest
import torch

from rl.algorithms.correction import importance_weights


def test_weights_are_the_ratio_of_probabilities_up_to_the_limit():
    old = torch.tensor([0.5, 0.5, 0.9, 0.1], dtype=torch.float64).log()
    rollout = torch.tensor([0.5, 0.25, 0.1, 0.4], dtype=torch.float64).log()
    got = importance_weights(old, rollout, max_weight=2.0)
    torch.testing.assert_close(got, torch.tensor([1.0, 2.0, 2.0, 0.25], dtype=torch.float64))


def test_policies_that_agree_bit_for_bit_weigh_exactly_one():
    logprobs = torch.tensor([-0.1, -30.0, -1e-8])
    assert importance_weights(logprobs, logprobs.clone(), max_weight=1.0).tolist() == [1.0] * 3


def test_a_ratio_that_would_overflow_is_truncated_first():
    got = importance_weights(torch.tensor([-1.0]), torch.tensor([-1000.0]), max_weight=3.0)
    assert got.item() == pytest.approx(3.0)


def test_a_logprob_that_is_not_a_number_stays_one():
    got = importance_weights(torch.tensor([math.nan]), torch.tensor([-1.0]), max_weight=3.0)
    assert got.isnan().all()
