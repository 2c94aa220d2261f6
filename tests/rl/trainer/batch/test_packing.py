import pytest

from rl.algorithms.base.config import LossReduction
from rl.trainer.batch.packing import loss_weights
from tests.rl.trainer.rollout_factory import Sample, pack_samples, rollout


def sample(made, advantage=1.0, loss_weight=1.0):
    return Sample(
        rollout=made, advantages=[advantage] * made.num_sampled_tokens, loss_weight=loss_weight
    )


SIBLINGS = [
    sample(rollout([1, 2, 3], [10, 11], group_id=4, sample_index=0), advantage=0.5),
    sample(rollout([1, 2, 3], [20], group_id=4, sample_index=1), advantage=-0.5),
]


def test_siblings_share_their_prompts_rows_and_its_last_row_predicts_each_first_token():
    (batch,) = pack_samples(SIBLINGS, max_tokens=100, share_prompts=True)
    # prompt 1 2 3, then 10; 11 and 20 are last tokens, which nobody reads
    assert batch.token_ids_T.tolist() == [1, 2, 3, 10]
    assert batch.positions_T.tolist() == [0, 1, 2, 3]
    assert batch.source_rows_N.tolist() == [2, 3, 2]
    assert batch.target_ids_N.tolist() == [10, 11, 20]
    assert batch.sample_ids_N.tolist() == [0, 0, 1]
    assert batch.advantages_N.tolist() == [0.5, 0.5, -0.5]


def test_without_sharing_every_sample_has_its_prompt():
    (batch,) = pack_samples(SIBLINGS, max_tokens=100, share_prompts=False)
    assert batch.token_ids_T.tolist() == [1, 2, 3, 10, 1, 2, 3]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert batch.source_rows_N.tolist() == [2, 3, 6]


def test_an_environments_reply_is_read_but_not_trained():
    made = rollout([1], [10, 11], [90, 91], [12])
    (batch,) = pack_samples([sample(made)], max_tokens=100, share_prompts=True)
    assert batch.token_ids_T.tolist() == [1, 10, 11, 90, 91]
    assert batch.target_ids_N.tolist() == [10, 11, 12]
    assert batch.source_rows_N.tolist() == [0, 1, 4]


def test_prompts_share_what_they_begin_with_until_they_part():
    made = [
        rollout([1, 2, 3, 4], [50, 51], group_id=0),
        rollout([1, 2, 9], [60], group_id=1),
        rollout([1, 2], [70, 71], group_id=2),
        rollout([5, 2], [80], group_id=3),
    ]
    (batch,) = pack_samples([sample(r) for r in made], max_tokens=100, share_prompts=True)
    assert batch.token_ids_T.tolist() == [1, 2, 3, 4, 50, 9, 70, 5, 2]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 2, 2, 0, 1]
    assert batch.source_rows_N.tolist() == [3, 4, 5, 1, 6, 8]
    assert [list(s.key_index) for s in batch.layout.segments] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [0, 1, 5],
        [0, 1, 6],
        [7, 8],
    ]


def test_the_same_tokens_after_different_ones_are_not_shared():
    made = [rollout([1, 2], [5], group_id=0), rollout([3, 2], [5], group_id=1)]
    (batch,) = pack_samples([sample(r) for r in made], max_tokens=100, share_prompts=True)
    assert batch.token_ids_T.tolist() == [1, 2, 3, 2]


def test_a_micro_batch_holds_its_budget_and_a_split_group_repeats_the_prompt():
    batches = pack_samples(SIBLINGS, max_tokens=4, share_prompts=True)
    assert [b.token_ids_T.tolist() for b in batches] == [[1, 2, 3, 10]]  # the sibling adds no row
    longer = [*SIBLINGS, sample(rollout([1, 2, 3], [30, 31, 32], group_id=4, sample_index=2))]
    batches = pack_samples(longer, max_tokens=5, share_prompts=True)
    assert [b.token_ids_T.tolist() for b in batches] == [[1, 2, 3, 10], [1, 2, 3, 30, 31]]
    assert [b.sample_ids_N.tolist() for b in batches] == [[0, 0, 1], [2, 2, 2]]


def test_every_target_is_packed_once_whatever_the_budget():
    samples = [
        sample(rollout([7] * (i // 4 % 3 + 1), [100 + i] * (i % 5 + 1), group_id=i // 4))
        for i in range(24)
    ]
    expected = [
        token for s in samples for token in s.rollout.log.token_ids[s.rollout.num_prompt_tokens :]
    ]
    for budget in (8, 13, 1000):
        batches = pack_samples(samples, max_tokens=budget, share_prompts=True)
        assert [t for b in batches for t in b.target_ids_N.tolist()] == expected
        assert all(len(b.token_ids_T) <= budget for b in batches)


def test_a_sample_longer_than_the_budget_is_refused_with_the_key():
    with pytest.raises(
        ValueError, match=r"max_tokens_per_micro_batch must hold .* 4 tokens, got 3"
    ):
        pack_samples(SIBLINGS[:1], max_tokens=3, share_prompts=True)


def test_token_mean_weighs_tokens_and_divides_by_their_number():
    rollouts = [rollout([1], [2, 3, 4]), rollout([1], [5])]
    assert loss_weights(rollouts, LossReduction.token_mean, fixed_length=8) == ([1.0, 1.0], 4.0)


def test_sequence_mean_weighs_rollouts_the_same():
    rollouts = [rollout([1], [2, 3, 4, 5]), rollout([1], [5])]
    got = loss_weights(rollouts, LossReduction.sequence_mean, fixed_length=8)
    assert got == ([0.25, 1.0], 2.0)


def test_fixed_length_divides_by_a_constant():
    rollouts = [rollout([1], [2, 3, 4, 5]), rollout([1], [5])]
    got = loss_weights(rollouts, LossReduction.fixed_length, fixed_length=8)
    assert got == ([0.125, 0.125], 2.0)
