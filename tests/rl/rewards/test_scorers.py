"""The scorers that come with the tasks, and users' own by import path."""

import pickle
import sys

import pytest

from rl.rewards.arithmetic import score_arithmetic
from rl.rewards.job import ScoreJob
from rl.rewards.mathematics import score_mathematics
from rl.rewards.pool import ScorerPool
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


def test_a_gold_answer_that_is_none_is_an_error_not_a_zero():
    with pytest.raises(ValueError, match=r"'' is no answer, .*task\.scorer"):
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
        ("rl.rewards.values:MAX_SCORE", "must be callable, got a float"),
        ("os:getcwd", r"must take completion, .*; got the parameters \(none\)"),
    ],
)
def test_a_bad_scorer_path_is_refused_with_the_reason(path, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_scorer(path)


def test_a_scorer_imports_files_beside_it_from_any_working_directory(tmp_path, monkeypatch):
    (tmp_path / "helper_beside.py").write_text("def right(text):\n    return text == '4'")
    (tmp_path / "scorer_beside.py").write_text(
        "def score(completion, row):\n    from helper_beside import right\n    return right(completion)\n"
    )
    before = list(sys.path)
    monkeypatch.chdir(tmp_path)
    by_file, by_module = load_scorer("scorer_beside.py:score"), load_scorer("scorer_beside:score")
    monkeypatch.chdir("/")
    assert sys.path == before
    for scorer in (by_file, by_module):
        with ScorerPool(scorer, num_workers=1, time_limit_seconds=9, memory_limit_gb=1) as pool:
            (outcome,) = pool.submit([ScoreJob(completion="4")]).outcomes()
        assert outcome.score == 1.0, outcome.message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("1 / 0", "raises ZeroDivisionError when it is imported: division by zero"),
        ("def score(", "raises SyntaxError when it is imported"),
        ("def score(text, gold): pass", r"own_\w+\.py:score: a scorer must take completion"),
    ],
)
def test_a_scorer_that_cannot_be_used_is_refused_in_one_sentence(code, message, tmp_path):
    path = tmp_path / f"own_{abs(hash(code))}.py"
    path.write_text(code)
    with pytest.raises(ValueError, match=message):
        load_scorer(f"{path}:score")


def test_scorers_written_for_verl_and_trl_work_as_they_are(tmp_path):
    (tmp_path / "others.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
        "    return solution_str == ground_truth\n"
        "async def reward(prompts, completions, level, **columns):\n"
        "    return [float(c == a and l == 3) for c, a, l in zip(completions, columns['answer'], level)]\n"
    )
    for name in ("compute_score", "reward"):
        scorer = load_scorer(f"{tmp_path}/others.py:{name}")
        scorer.check_columns(["level", "answer"])
        jobs = [
            ScoreJob(completion=text, row={"level": 3, "answer": "4"}, prompt="2 + 2", answer="4")
            for text in ("4", "5")
        ]
        with ScorerPool(scorer, num_workers=1, time_limit_seconds=9, memory_limit_gb=1) as pool:
            assert [outcome.score for outcome in pool.submit(jobs).outcomes()] == [1.0, 0.0]
