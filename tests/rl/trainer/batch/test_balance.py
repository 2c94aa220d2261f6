"""Samples are shared out by the rows they cost; groups stay together where that is no slower."""

import pytest

from rl.rollouts import Rollout
from rl.trainer.batch.balance import balance
from tests.rl.trainer.rollout_factory import rollout


def samples(*groups: tuple[int, list[int]]) -> list[Rollout]:
    """(tokens of the prompt, tokens of each completion) of every group."""
    return [
        rollout([1] * prompt, [2] * length, group_id=g, sample_index=i)
        for g, (prompt, lengths) in enumerate(groups)
        for i, length in enumerate(lengths)
    ]


def test_one_rank_has_all_samples_in_their_order():
    assert balance(samples((2, [1, 9, 3])), 1, share_prompts=True) == [[0, 1, 2]]


def test_whole_groups_go_to_the_rank_with_least_to_do_the_largest_first():
    # rows: 10 + 20 - 2 = 28, 10 + 2 - 2 = 10, 10 + 12 - 2 = 20
    made = samples((10, [10, 10]), (10, [1, 1]), (10, [6, 6]))
    assert balance(made, 2, share_prompts=True) == [[0, 1], [2, 3, 4, 5]]


def test_fewer_groups_than_ranks_are_split_and_no_rank_is_idle():
    made = samples((4, [50, 50, 50, 50]))
    shares = balance(made, 2, share_prompts=True)
    assert [len(share) for share in shares] == [2, 2]


def test_a_long_prompt_is_not_computed_twice_to_balance_short_completions():
    # whole groups: 402 rows each. Split evenly, each rank would compute both prompts
    made = samples((400, [2, 1]), (400, [2, 1]))
    assert balance(made, 2, share_prompts=True) == [[0, 1], [2, 3]]


def test_one_long_straggler_is_left_alone():
    made = samples((2, [100, 2]), (2, [2, 2]), (2, [2, 2]))
    shares = balance(made, 2, share_prompts=True)
    assert shares == [[0], [1, 2, 3, 4, 5]]


def test_without_shared_prompts_each_sample_pays_for_its_own():
    # shared, the long prompt weighs once: 104 against 2 x 33; unshared it weighs four times
    made = samples((100, [2, 2, 2, 2]), (1, [33]), (1, [33]))
    assert balance(made, 2, share_prompts=True) == [[0, 1, 2, 3], [4, 5]]
    shares = balance(made, 2, share_prompts=False)
    assert shares != [[0, 1, 2, 3], [4, 5]]


@pytest.mark.parametrize("num_ranks", [2, 3, 7, 50])
@pytest.mark.parametrize("share_prompts", [True, False])
def test_every_sample_is_on_exactly_one_rank_and_in_order(num_ranks, share_prompts):
    made = samples(*[(3 + g, [(7 * g + 5 * i) % 11 for i in range(3)]) for g in range(6)])
    shares = balance(made, num_ranks, share_prompts=share_prompts)
    assert len(shares) == num_ranks
    assert sorted(i for share in shares for i in share) == list(range(18))
    assert all(share == sorted(share) for share in shares)


def test_nothing_to_share_is_shared():
    assert balance([], 3, share_prompts=True) == [[], [], []]
