"""Dispatch by config type. The tasks themselves have tests of their own."""

import pytest

from rl.rewards.arithmetic import score_arithmetic
from rl.rewards.scorer import ImportedScorer
from rl.tasks.config import ArithmeticConfig, TaskConfig
from rl.tasks.task import load_task


def test_arithmetic_comes_with_its_scorer_and_the_system_prompt():
    task = load_task(ArithmeticConfig(num_held_out=5, num_train=5, system_prompt="Be brief."))
    assert task.name == "arithmetic"
    assert task.scorer is score_arithmetic
    for prompt in (*task.train, *task.held_out):
        assert [message["role"] for message in prompt.messages] == ["system", "user"]
        assert prompt.messages[1]["content"] == prompt.row["question"]


def test_the_users_own_scorer_replaces_that_of_the_task():
    path = "rl.rewards.mathematics:score_mathematics"
    task = load_task(ArithmeticConfig(num_held_out=5, num_train=5, scorer=path))
    assert task.scorer == ImportedScorer(path)
    assert task.scorer(task.train[0].row["answer"], task.train[0].row) == 1.0


def test_a_bad_scorer_is_refused_before_any_data_is_read():
    with pytest.raises(ValueError, match=r"task\.scorer must be"):
        load_task(ArithmeticConfig(scorer="nonsense", max_digits=1))


def test_an_unknown_kind_of_task_is_an_error():
    with pytest.raises(TypeError, match="no task for a TaskConfig"):
        load_task(TaskConfig())
