"""Columns stay with their samples, whichever are taken, and rows that are laid out once serve later columns."""

import torch

from rl.algorithms.base.config import LossReduction
from rl.trainer.batch.division import Divider
from rl.trainer.batch.mini_batches import MiniBatches
from rl.trainer.batch.training_batch import TrainingBatch
from rl.trainer.config import TrainerConfig
from rl.trainer.ranks.group import ALONE
from tests.rl.trainer.rollout_factory import group, rollout

# the second samples nothing, the third talks to an environment in between
ROLLOUTS = [
    rollout([1, 2], [10, 11], sample_index=0, logprob=-0.5),
    rollout([1, 2], [], sample_index=1),
    rollout([1, 2], [20], [90, 91], [21], sample_index=2, logprob=-0.25),
]


def batch() -> TrainingBatch:
    ids = torch.tensor([10.0, 11.0, 20.0, 21.0])
    return TrainingBatch.of(ROLLOUTS).with_columns({"ids": ids})


def test_a_batch_begins_with_what_the_engine_reported_of_each_trained_token():
    made = batch()
    assert made.lengths == [2, 0, 2]
    assert made["rollout_logprobs"].tolist() == [-0.5, -0.5, -0.25, -0.25]
    assert [(span.start, span.stop) for span in made.spans()] == [(0, 2), (2, 2), (2, 4)]


def test_samples_take_their_columns_along_in_the_order_in_which_they_are_taken():
    taken = batch().take([2, 1, 0])
    assert taken["ids"].tolist() == [20.0, 21.0, 10.0, 11.0]
    assert taken.lengths == [2, 0, 2]
    assert batch().take([])["ids"].tolist() == []


def test_a_value_per_sample_is_repeated_for_each_of_its_tokens():
    assert batch().per_token([1.0, 2.0, 3.0], torch.float32).tolist() == [1.0, 1.0, 3.0, 3.0]


def test_rows_that_were_packed_before_are_used_again_with_the_columns_of_now():
    divider = Divider(TrainerConfig(), ALONE)
    made = batch()
    division = divider.divide(made, [0, 2])
    advantages = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    made = made.with_columns({"advantages": advantages})
    parts = MiniBatches(divider, count=1, reduction=LossReduction.token_mean, max_tokens=8)
    (mini_batch,) = parts.of(made, [group(*ROLLOUTS)], trains_all=False, divided=division)
    (packed,), (used,) = division.micro_batches, mini_batch.micro_batches
    assert used.token_ids_T is packed.token_ids_T
    assert used.advantages_N.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert used.columns["ids"].tolist() == used.target_ids_N.tolist()
    assert mini_batch.denominator == 4.0


def test_rows_are_packed_anew_where_samples_without_signal_fall_out():
    divider = Divider(TrainerConfig(), ALONE)
    made = batch()
    division = divider.divide(made, [0, 2])
    advantages = torch.tensor([0.0, 0.0, 3.0, 4.0], dtype=torch.float64)
    made = made.with_columns({"advantages": advantages})
    parts = MiniBatches(divider, count=1, reduction=LossReduction.token_mean, max_tokens=8)
    (mini_batch,) = parts.of(made, [group(*ROLLOUTS)], trains_all=False, divided=division)
    (used,) = mini_batch.micro_batches
    assert used.target_ids_N.tolist() == used.columns["ids"].tolist() == [20, 21]
    assert mini_batch.own == [2]
