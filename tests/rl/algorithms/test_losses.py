"""Gradients by hand, one small case per loss."""

import math

import pytest

from rl.algorithms.cispo import cispo_loss
from rl.algorithms.dapo import dapo_loss
from rl.algorithms.distillation import distillation_loss
from rl.algorithms.dr_grpo import dr_grpo_loss
from rl.algorithms.gspo import gspo_loss
from rl.algorithms.maxrl import maxrl_loss
from rl.algorithms.ppo import ppo_loss
from rl.algorithms.reinforce_pp import reinforce_pp_loss
from rl.algorithms.rloo import rloo_loss
from rl.algorithms.sft import sft_loss
from tests.rl.algorithms.batches import gradient, tokens

LN2 = math.log(2)
CLIPPED = [dapo_loss, dr_grpo_loss, ppo_loss, reinforce_pp_loss]
UNCLIPPED = [distillation_loss, maxrl_loss, rloo_loss]


@pytest.mark.parametrize("loss", CLIPPED)
def test_a_clipped_loss_weighs_by_the_ratio_until_it_is_clipped(loss):
    # ratios 1.25 (inside), 1.5 (outside, A > 0), 1.5 (A < 0: the minimum keeps it), 0.5 (outside, A < 0)
    ratios, advantages = [1.25, 1.5, 1.5, 0.5], [2.0, 2.0, -2.0, -2.0]
    made = tokens([math.log(r) for r in ratios], [0.0] * 4, advantages, [1.0, 1.0, 0.5, 1.0])
    got = gradient(loss, made, clip_low=0.2, clip_high=0.3)
    assert got == pytest.approx([-2.5, 0.0, 1.5, 0.0])


@pytest.mark.parametrize("loss", UNCLIPPED)
def test_an_unclipped_loss_weighs_by_the_ratio(loss):
    made = tokens([LN2, -LN2, math.nan], [0.0, 0.0, 0.0], [3.0, -1.0, 1.0], [1.0, 0.5, 0.0])
    assert gradient(loss, made) == pytest.approx([-6.0, 0.25, 0.0])


def test_gspo_has_one_ratio_per_sequence_and_divides_its_gradient_over_the_tokens():
    # sample 0: mean log ratio (ln 4 + 0) / 2 = ln 2, s = 2; sample 1: one trained token of two, s = e^-0.1
    made = tokens(
        [2 * LN2, 0.0, -0.1, 5.0],
        [0.0] * 4,
        [1.0, 1.0, -3.0, -3.0],
        [0.5, 0.5, 1.0, 0.0],
        sample_ids=[0, 0, 1, 1],
    )
    got = gradient(gspo_loss, made, clip_low=0.9, clip_high=9.0)
    # -(0.5 + 0.5) * s A / 2 each; the untrained token enters neither mean nor gradient
    assert got == pytest.approx([-1.0, -1.0, 3 * math.exp(-0.1), 0.0])


def test_gspo_clips_whole_sequences():
    made = tokens([0.1, -0.1, 0.3, 0.1], [0.0] * 4, [1.0] * 4, [0.5] * 4, sample_ids=[3, 3, 8, 8])
    out = gspo_loss(made, clip_low=0.01, clip_high=0.01)
    got = gradient(gspo_loss, made, clip_low=0.01, clip_high=0.01)
    assert got == pytest.approx([-0.5, -0.5, 0.0, 0.0])
    assert out.metrics["ratio/clip_fraction"] == 2


def test_cispo_clips_the_weight_and_keeps_the_gradient():
    # ratios 2, 8, 1/8: the second weighs 4, nothing is cut off below
    made = tokens([LN2, 3 * LN2, -3 * LN2], [0.0] * 3, [1.0, 1.0, -1.0])
    assert gradient(cispo_loss, made, max_ratio=4.0) == pytest.approx([-2.0, -4.0, 0.125])
    assert cispo_loss(made, max_ratio=4.0).metrics["ratio/clip_fraction"] == 1


def test_cispo_survives_a_ratio_that_would_overflow_and_an_untrained_nan():
    made = tokens([900.0, math.nan], [0.0, 0.0], [1.0, 1.0], [1.0, 0.0])
    assert gradient(cispo_loss, made, max_ratio=4.0) == pytest.approx([-4.0, 0.0])


@pytest.mark.parametrize("loss", [*CLIPPED, *UNCLIPPED, gspo_loss])
def test_a_ratio_that_would_overflow_is_clamped_before_exp_and_has_no_gradient(loss):
    # unclamped, exp's gradient is infinite, and NaN behind a clip that passes none of it
    clip = {} if loss in UNCLIPPED else {"clip_low": 0.2, "clip_high": 0.2}
    made = tokens([900.0, 900.0, 0.0], [0.0] * 3, [1.0, -1.0, 2.0], sample_ids=[0, 1, 2])
    assert loss(made, **clip).loss.isfinite()
    assert gradient(loss, made, **clip) == pytest.approx([0.0, 0.0, -2.0])


def test_sft_is_cross_entropy_whatever_the_base_policy():
    made = tokens([-1.0, -2.0, math.nan], [-9.0, 0.0, 0.0], [1.0] * 3, [1.0, 0.5, 0.0])
    assert sft_loss(made).loss.item() == 2.0
    assert gradient(sft_loss, made) == pytest.approx([-1.0, -0.5, 0.0])


@pytest.mark.parametrize("loss", [*CLIPPED, *UNCLIPPED, gspo_loss, cispo_loss, sft_loss])
def test_a_micro_batch_whose_tokens_are_all_masked_has_no_gradient(loss):
    arguments = {"clip_low": 0.2, "clip_high": 0.2} if loss in (*CLIPPED, gspo_loss) else {}
    if loss is cispo_loss:
        arguments = {"max_ratio": 2.0}
    made = tokens([5.0, math.nan], [0.0, 0.0], [1.0, math.inf], [0.0, 0.0])
    assert gradient(loss, made, **arguments) == [0.0, 0.0]
