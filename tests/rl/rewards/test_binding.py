"""Scorers get what their parameters name, in the signatures of ours, of verl and of TRL."""

import functools

import numpy as np
import pytest
import torch

from rl.rewards.binding import bind_scorer
from rl.rewards.job import ScoreJob
from rl.rewards.values import to_score

ROW = {"problem": "2 + 2", "final": "4", "answer": "the row's own", "level": 3}
JOB = ScoreJob(completion="It is 4", row=ROW, prompt="2 + 2", answer="4")
MESSAGES = [{"role": "user", "content": "2 + 2"}]


def call(function, job=JOB):
    return bind_scorer(function)(job)


def test_our_own_signature_gets_the_datasets_own_columns():
    assert call(lambda completion, row: (completion, row)) == (
        "It is 4",
        {"question": "2 + 2", **ROW},
    )
    assert call(lambda row, completion: row["answer"]) == "the row's own"


def test_a_row_without_an_answer_column_holds_the_gold_answer():
    job = ScoreJob(completion="4", row={"final": 4}, prompt=MESSAGES, answer=4)
    row = call(lambda completion, row: row, job)
    assert row == {"final": 4, "question": MESSAGES, "answer": 4}


def test_the_transcript_comes_by_name_and_in_the_row_unless_a_column_has_that_name():
    job = ScoreJob(completion="4", row={"answer": "4"}, transcript=MESSAGES)
    assert (
        call(lambda completion, transcript, row: (transcript, row["transcript"]), job)
        == (MESSAGES,) * 2
    )
    own = ScoreJob(completion="4", row={"answer": "4", "transcript": "own"}, transcript=MESSAGES)
    assert call(lambda completion, row: row["transcript"], own) == "own"


def test_columns_and_the_gold_answer_come_by_name():
    def score(response, ground_truth, answer, question, *, level, tries=7):
        return response, ground_truth, answer, question, level, tries

    assert call(score) == ("It is 4", "4", "4", "2 + 2", 3, 7)


def test_a_parameter_with_a_default_takes_the_column_of_its_name():
    assert call(lambda completion, level=0, missing=9: (level, missing)) == (3, 9)


def test_positional_only_parameters_are_bound_by_name_too():
    def score(row, completion, /, level):
        return completion, row["level"], level

    assert call(score) == ("It is 4", 3, 3)


def test_verls_signature_gets_the_gold_answer_and_not_the_row():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return data_source, solution_str, ground_truth, extra_info

    row = {
        "data_source": "openai/gsm8k",
        "reward_model": {"ground_truth": "4"},
        "extra_info": {"index": 5},
    }
    job = ScoreJob(completion="#### 4", row=row, answer="4")
    assert call(compute_score, job) == ("openai/gsm8k", "#### 4", "4", {"index": 5})
    assert call(compute_score) == ("dataset", "It is 4", "4", ROW)


def test_verls_signature_with_keywords_gets_all_of_verls():
    job = ScoreJob(completion="4", row={}, prompt="2 + 2", answer="4")
    assert call(lambda solution_str, **kwargs: set(kwargs), job) == {
        "question", "answer", "ground_truth", "data_source", "extra_info",
    }  # fmt: skip


def test_trls_signature_gets_lists_of_one_and_its_own_columns():
    def reward(prompts, completions, answer, level, **columns):
        assert (prompts, completions, answer, level) == (
            ["2 + 2"],
            ["It is 4"],
            ["the row's own"],
            [3],
        )
        assert columns == {
            "problem": ["2 + 2"], "final": ["4"], "question": ["2 + 2"], "ground_truth": ["4"],
        }  # fmt: skip
        return [0.25]

    assert call(reward) == 0.25


def test_trls_completions_are_messages_if_the_prompt_is():
    def reward(completions, prompts, **columns):
        return [(prompts[0], completions[0])]

    job = ScoreJob(completion="4", row={"prompt": MESSAGES}, prompt=MESSAGES, answer="4")
    assert call(reward, job) == (MESSAGES, [{"role": "assistant", "content": "4"}])


@pytest.mark.parametrize("scores", [[], [1.0, 2.0], 1.0, {"score": 1}, "1", None])
def test_trls_functions_return_one_score(scores):
    with pytest.raises(ValueError, match=r"must return a list with one score for each, here 1"):
        call(lambda completions, **columns: scores)


def test_trls_functions_may_return_arrays():
    assert to_score(call(lambda completions: np.array([0.5]))) == 0.5
    assert to_score(call(lambda completions: torch.tensor([0.5]))) == 0.5


def test_async_scorers_of_every_signature_are_waited_for_on_one_loop():
    import asyncio

    loops = []

    async def score(completion, row):
        loops.append(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return 1.0

    async def reward(completions, **columns):
        loops.append(asyncio.get_running_loop())
        return [2.0]

    class Compute:
        async def __call__(self, data_source, solution_str, ground_truth, extra_info=None):
            loops.append(asyncio.get_running_loop())
            return 3.0

    assert [call(score), call(reward), call(Compute())] == [1.0, 2.0, 3.0]
    assert loops[0] is loops[1] is loops[2]


def test_partial_functions_and_methods_are_bound():
    def score(scale, completion, row):
        return scale

    class Judge:
        def score(self, completion, row):
            return row["level"]

    assert call(functools.partial(score, 2.0)) == 2.0
    assert call(Judge().score) == 3


@pytest.mark.parametrize(
    "function",
    [
        lambda: 0,
        lambda row: 0,
        lambda text, gold: 0,
        lambda **kwargs: 0,
        lambda *args: 0,
        lambda prompts, **columns: 0,
        len,
        int,
    ],
)
def test_what_takes_no_completion_is_refused(function):
    with pytest.raises(ValueError, match="a scorer must"):
        bind_scorer(function)


def test_parameters_that_nothing_names_are_refused_when_the_columns_are_known():
    bound = bind_scorer(lambda completion, levle, row, tries=1: 0)
    with pytest.raises(
        ValueError, match=r"columns problem, final, answer, level; got levle: rename"
    ):
        bound.check_columns(list(ROW))
    bind_scorer(lambda completions, prompts, level: 0).check_columns(list(ROW))
    with pytest.raises(ValueError, match="got completion_ids"):
        bind_scorer(lambda completions, completion_ids: 0).check_columns(list(ROW))
    with pytest.raises(ValueError, match="got prompts"):
        bind_scorer(lambda completion, prompts: 0).check_columns(list(ROW))


def test_a_row_without_the_column_is_an_error_of_that_row():
    with pytest.raises(LookupError, match="no column 'level', which the scorer asks for"):
        call(lambda completion, level: 0, ScoreJob(completion="", row={}))


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (1, 1.0),
        (True, 1.0),
        (np.bool_(True), 1.0),
        (np.float32(0.5), 0.5),
        (np.int64(-2), -2.0),
        (np.array(0.5), 0.5),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(True), 1.0),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        ({"score": 0.5, "acc": True}, 0.5),
        (1e15, 1e15),
        (-(10**15), -1e15),
    ],
)
def test_numbers_of_python_numpy_and_torch_are_scores(value, score):
    assert to_score(value) == score
    assert type(to_score(value)) is float


@pytest.mark.parametrize("value", [1e308, -1e308, 10**400, 1.1e15, np.float64(1e300)])
def test_scores_whose_squares_could_overflow_are_refused(value):
    with pytest.raises(ValueError, match=r"must lie in \[-1e\+15, 1e\+15\].*scale it"):
        to_score(value)


@pytest.mark.parametrize(
    "value",
    [None, "1.0", 1j, [1.0], (1.0, "why"), {"reward": 1}, float("nan"), -float("inf"), np.array([1.0]),
     np.float64("nan"), torch.tensor(float("inf")), np.array("1"), object()],
)  # fmt: skip
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(ValueError, match="a scorer must return a finite number, got"):
        to_score(value)
