import logging

import pytest

from rl.tasks.config import ArithmeticConfig
from rl.tasks.form import PromptForm
from rl.tasks.prompts import Problem, PromptOrder, make_prompt, problem_of, split_prompts


def problems(*questions: str) -> list[Problem]:
    return [problem_of({"question": question, "answer": "0"}) for question in questions]


def epoch_of(order: PromptOrder, epoch: int, *, size: int) -> list[int]:
    return [order.prompt_id(epoch * size + position) for position in range(size)]


@pytest.mark.parametrize("size", [1, 2, 7, 100])
def test_every_epoch_is_a_permutation(size):
    order = PromptOrder(size, seed=3)
    for epoch in range(3):
        assert sorted(epoch_of(order, epoch, size=size)) == list(range(size))


def test_epochs_and_seeds_differ():
    epochs = {
        (seed, epoch): tuple(epoch_of(PromptOrder(50, seed=seed), epoch, size=50))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(epochs.values())) == 9
    assert tuple(range(50)) not in epochs.values()


def test_the_order_has_no_state_but_the_ordinal():
    order, forward = PromptOrder(5, seed=1), PromptOrder(5, seed=1)
    expected = [forward.prompt_id(ordinal) for ordinal in range(20)]
    shuffled = [19, 0, 7, 7, 12, 1, 18, 3]
    assert [order.prompt_id(ordinal) for ordinal in shuffled] == [expected[o] for o in shuffled]


def test_the_order_is_that_of_older_runs():
    # recorded with numpy 2: a resumed run goes on where it was, whatever numpy is installed
    assert epoch_of(PromptOrder(10, seed=0), 0, size=10) == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]


def test_order_refuses_nonsense():
    with pytest.raises(ValueError, match="num_prompts must be > 0, got 0"):
        PromptOrder(0, seed=0)
    with pytest.raises(ValueError, match="seed must be >= 0, got -1"):
        PromptOrder(4, seed=-1)
    with pytest.raises(ValueError, match="ordinal must be >= 0, got -1"):
        PromptOrder(4, seed=0).prompt_id(-1)


def test_the_question_may_stand_within_the_user_message():
    (problem,) = problems("6 + 3 =")
    form = PromptForm(user_prompt="Work out {question} Only {{the}} number, in \\boxed{}.")
    assert make_prompt(0, problem=problem, form=form).messages == (
        {"role": "user", "content": "Work out 6 + 3 = Only {the} number, in \\boxed{}."},
    )


def test_a_user_message_without_the_question_is_refused():
    with pytest.raises(
        ValueError, match=r"task.user_prompt must be a text with \{question\} in it"
    ):
        ArithmeticConfig(user_prompt="Go on.")


def test_a_system_prompt_comes_first_and_an_empty_one_is_not_sent():
    (problem,) = problems("6 + 3 =")
    user = {"role": "user", "content": "6 + 3 ="}
    assert make_prompt(0, problem=problem, form=PromptForm()).messages == (user,)
    assert make_prompt(0, problem=problem, form=PromptForm(system_prompt="Be brief.")).messages == (
        {"role": "system", "content": "Be brief."},
        user,
    )


def test_held_out_questions_are_not_trained_on_and_ids_go_on_after_training(caplog):
    with caplog.at_level(logging.WARNING):
        split = split_prompts(
            train=problems("a", "b", "c", "b"), held_out=problems("b", "d"), form=PromptForm()
        )
    assert [(p.prompt_id, p.question) for p in split.train] == [(0, "a"), (1, "c")]
    assert [(p.prompt_id, p.question) for p in split.held_out] == [(2, "b"), (3, "d")]
    assert "left out 2 of 4 training prompts" in caplog.text


def test_nothing_left_to_train_on_is_an_error():
    with pytest.raises(ValueError, match="all 2 training prompts are among the 1 held-out"):
        split_prompts(train=problems("a", "a"), held_out=problems("a"), form=PromptForm())


def test_a_begun_reply_comes_last_and_may_repeat_the_question():
    (problem,) = problems("6 + 3 =")
    made = make_prompt(0, problem=problem, form=PromptForm(reply_prefix="So {question}"))
    assert made.messages[-1] == {"role": "assistant", "content": "So 6 + 3 ="}
