"""The scorers that come with the tasks, and users' own by import path."""

import pickle

import pytest

from rl.rewards.arithmetic import score_arithmetic
from rl.rewards.mathematics import score_mathematics
from rl.rewards.reasoning_gym_task import ReasoningGymScorer
from rl.rewards.scorer import load_scorer


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("9", "9", 1.0),
        ("6 + 3 = 9", "9", 1.0),
        ("9 or 8", "9", 0.0),
        ("-4", "-4", 1.0),
        ("4", "-4", 0.0),
        ("-4", "4", 0.0),
        ("009.", "9", 1.0),
        ("-0", "0", 1.0),
        ("19", "9", 0.0),
        ("", "0", 0.0),
        ("none", "0", 0.0),
        ("9" * 5000, "9", 0.0),
    ],
)
def test_arithmetic_counts_the_last_integer(completion, answer, score):
    assert score_arithmetic(completion, {"answer": answer}) == score


@pytest.mark.parametrize(
    ("completion", "answer", "score"),
    [
        ("So the answer is \\boxed{\\frac{1}{2}}.", "0.5", 1.0),
        ("0.5", "\\frac{1}{2}", 1.0),
        ("It is $1+x^2$", "x^2+1", 1.0),
        ("It is 100000", "10^{5}", 1.0),
        ("It is 10", "10^{5}", 0.0),
        ("1,234", "1234", 1.0),
        ("18", "9 eggs at $2 make $18, not $16.\n#### 18", 1.0),
        ("16", "9 eggs at $2 make $18, not $16.\n#### 18", 0.0),
        ("18", "Half is \\boxed{9}.\n#### 18", 1.0),
        ("I do not know", "18", 0.0),
        ("", "18", 0.0),
        ("\\boxed{\\frac{}{", "18", 0.0),
    ],
)
def test_mathematics_compares_values_not_texts(completion, answer, score):
    assert score_mathematics(completion, {"answer": answer}) == score


def test_an_answer_without_mathematics_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match=r"no mathematics in the answer ''; .*task\.scorer"):
        score_mathematics("18", {"answer": ""})


def test_reasoning_gym_scores_the_last_tags_or_else_the_whole_completion():
    scorer = ReasoningGymScorer("chain_sum", params={"max_digits": 1})
    row = {"question": "6 + 3 =", "answer": "9", "metadata": {}}
    assert scorer("<answer>8</answer> no, <answer> 9 </answer> (not 7)", row) == 1.0
    assert scorer(" 9\n", row) == 1.0
    assert scorer("<answer>8</answer> 9", row) == 0.0
    assert pickle.loads(pickle.dumps(scorer))("9", row) == 1.0  # after the dataset was built


def test_a_scorer_can_live_in_a_file(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "def score(completion, row):\n    return row['answer'] == completion"
    )
    monkeypatch.chdir(tmp_path)
    scorer = load_scorer("own.py:score")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(scorer))
    assert again == scorer
    assert again("a", {"answer": "a"}) is True
    assert str(tmp_path) in again.path


def test_a_scorer_can_live_in_a_package():
    assert load_scorer("rl.rewards.arithmetic:score_arithmetic")("9", {"answer": "9"}) == 1.0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("score", r"must be `package\.module:function` or .*, got 'score'"),
        (":score", "must be .*, got ':score'"),
        ("os:", "must be .*, got 'os:'"),
        ("no_such_module:score", "no_such_module cannot be imported: No module named"),
        ("no_such_file.py:score", r"cannot be imported: there is no file .*no_such_file\.py"),
        ("rl.rewards.arithmetic:scor", "has no 'scor'; it has score_arithmetic"),
        ("rl.rewards.pool:MAX_JOBS_PER_CHUNK", "must be callable, got a int"),
        ("os:getcwd", r"must accept \(completion: str, row: dict\)"),
    ],
)
def test_a_bad_scorer_path_is_refused_with_the_reason(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_scorer(path)
