import pickle

import pytest

from rl.tasks.config import ReasoningGymConfig
from rl.tasks.reasoning_gym_task import reasoning_gym_prompts
from rl.tasks.task import load_task


def config(name="number_sorting", **values):
    return ReasoningGymConfig(**{"name": name, "num_train": 20, "num_held_out": 10, **values})


def test_items_are_those_of_the_library_and_score():
    task = load_task(config(params={"max_numbers": 4}))
    assert (task.name, len(task.train), len(task.held_out)) == ("number_sorting", 20, 10)
    for prompt in (*task.train, *task.held_out):
        assert task.scorer(prompt.row["answer"], prompt.row) == 1.0
        assert task.scorer("[]", prompt.row) < 1.0
        assert len(prompt.row["metadata"]["original_numbers"]) <= 4
        assert pickle.loads(pickle.dumps(prompt.row)) == prompt.row


def test_prompts_made_twice_are_equal_and_slices_are_lists():
    split = reasoning_gym_prompts(config())
    assert split.train[3] == split.train[3]
    assert split.train[2:4] == [split.train[2], split.train[3]]
    assert split.train[-1].prompt_id == 19
    assert [prompt.prompt_id for prompt in (*split.train, *split.held_out)] == list(range(30))
    with pytest.raises(IndexError):
        _ = split.train[20]


def test_held_out_items_come_from_a_seed_far_from_that_of_training():
    first, second = (reasoning_gym_prompts(config(seed=seed)) for seed in (0, 1))
    assert not questions(first.held_out) & questions(first.train)
    assert len(questions(first.train)) == 20  # none was held out and replaced
    assert questions(first.held_out) != questions(second.held_out)


def test_a_held_out_question_is_replaced_in_training_by_the_next_that_is_not():
    # 200 questions in all, so that held-out ones come up in training again and again
    params = {"min_digits": 1, "max_digits": 1, "min_terms": 2, "max_terms": 2}
    split = reasoning_gym_prompts(
        config("chain_sum", params=params, num_train=300, num_held_out=60)
    )
    assert len(split.train) == 300
    assert len(questions(split.train)) > 50
    assert not questions(split.train) & questions(split.held_out)


def test_nothing_left_to_train_on_is_an_error():
    params = {"min_digits": 1, "max_digits": 1, "min_terms": 1, "max_terms": 1}  # 10 questions
    with pytest.raises(ValueError, match=r"every one of the 20 .* among the 10 held-out"):
        reasoning_gym_prompts(config("chain_sum", params=params, num_held_out=200))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "number_sort"}, "no task 'number_sort'; did you mean number_sorting"),
        ({"name": "zzzzzz"}, r"no task 'zzzzzz'; it has .*ab, acre, "),
        ({"params": {"max_number": 5}}, "number_sorting has no max_number; it has .*max_numbers"),
        ({"params": {"seed": 5}}, r"must not hold seed: set task\.seed"),
        ({"params": {"min_numbers": 0}}, "number_sorting rejects them: min_numbers must be"),
        ({"params": {"min_numbers": "three"}}, "number_sorting rejects them: "),
    ],
)
def test_a_bad_name_or_parameter_is_refused_with_the_reason(values, message):
    with pytest.raises(ValueError, match=message):
        reasoning_gym_prompts(config(**values))


def questions(prompts) -> set[str]:
    return {prompt.row["question"] for prompt in prompts}
