import io
from pathlib import Path

import pytest
from rich.console import Console

from rl.tracking.answers import AnswerPair, choose_answers, pair_answers
from rl.tracking.summary import print_summary


def _print(
    *, width: int = 80, before=None, after=None, samples=(), samples_before=None, paths=None
) -> str:
    console = Console(file=io.StringIO(), width=width)
    answers = pair_answers(samples_before, samples)
    print_summary(console, before=before, after=after, answers=answers, paths=paths or {})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_accuracy_is_told_before_and_after_in_percent_points_and_counts(make_evaluation) -> None:
    text = _print(before=make_evaluation(0, 0.159), after=make_evaluation(60, 0.573))
    assert "15.9% -> 57.3%   +41.4 points" in text
    assert "159 of 1,000 right before, 573 of 1,000 right after" in text


def test_a_run_without_evaluations_says_so(make_evaluation) -> None:
    assert "no evaluation was made" in _print()
    assert "57.3%  573 of 1,000 right" in _print(after=make_evaluation(60, 0.573))


def test_answers_stand_side_by_side_with_a_mark_each(make_sample) -> None:
    rewards = [1.0, 0.0, None]
    after = [make_sample(prompt=f"q{i}", prompt_id=i, reward=r, completion=f"a{i}", answer=str(i)) for i, r in enumerate(rewards)]  # fmt: skip
    before = [{**row, "reward": 0.0, "completion": "b"} for row in after]
    lines = [line.split() for line in _print(samples=after, samples_before=before).splitlines()]
    assert ["prompt", "expected", "before", "after"] in lines
    assert ["q0", "0", "✗", "b", "✓", "a0"] in lines
    assert ["q1", "1", "✗", "b", "✗", "a1"] in lines
    assert ["q2", "2", "✗", "b", "?", "a2"] in lines
    alone = [line.split() for line in _print(samples=after).splitlines()]
    assert ["prompt", "expected", "answer"] in alone
    assert ["q0", "0", "✓", "a0"] in alone


def test_the_gain_is_also_told_on_the_prompts_that_were_asked_before(
    make_sample, make_evaluation
) -> None:
    after = [make_sample(prompt_id=i, reward=float(i < 3)) for i in range(4)]
    text = _print(
        before={**make_evaluation(0, 0.25), "evaluation/num_prompts": 4},
        after=make_evaluation(60, 0.7),
        samples=after,
        samples_before=[{**row, "reward": 0.0} for row in after],
    )
    assert "1 of 4 right before, 700 of 1,000 right after (75.0% of the first 4)" in text


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        # right before and after, only after, only before, never
        ((20, 58, 2, 20), (2, 6, 0, 2)),
        ((0, 0, 0, 1000), (0, 0, 0, 10)),
        ((1, 1, 1, 1), (1, 1, 1, 1)),
        ((250, 250, 250, 250), (3, 3, 2, 2)),
        ((0, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_right_and_wrong_answers_are_shown_in_their_true_share(
    make_sample, kinds, expected
) -> None:
    rewards = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, None)]
    wanted = [pair for pair, count in zip(rewards, kinds, strict=True) for _ in range(count)]
    pairs = [
        AnswerPair(make_sample(prompt_id=i, reward=before), make_sample(prompt_id=i, reward=after))
        for i, (before, after) in enumerate(wanted)
    ]
    chosen = [(p.before["reward"], p.after["reward"]) for p in choose_answers(pairs) if p.before]
    counts = tuple(chosen.count(pair) for pair in rewards)
    assert sum(counts) == min(10, sum(kinds))
    assert sorted(counts) == sorted(expected)
    if kinds != (250, 250, 250, 250):
        assert counts == expected


def test_a_terminal_without_unicode_gets_plain_marks(make_sample) -> None:
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii"), width=80)
    answers = pair_answers(None, [make_sample(reward=1.0), make_sample(reward=0.0)])
    print_summary(console, before=None, after=None, answers=answers, paths={})
    console.file.flush()
    text = raw.getvalue().decode("ascii")
    assert " + " in text
    assert " x " in text


def test_credit_for_parts_is_neither_right_nor_wrong(make_evaluation, make_sample) -> None:
    text = _print(after=make_evaluation(60, 0.1234), samples=[make_sample(reward=0.25)])
    assert "12.3%  123.4 of 1,000 points" in text
    assert " 0.25 " in text


def test_a_long_answer_keeps_its_end_and_markup_is_only_text(make_sample) -> None:
    text = _print(samples=[make_sample(completion="[red]so\n" + "and then " * 200 + "it is 17")])
    assert "[red]so and then" in text
    assert "it is 17" in " ".join(text.split())
    assert len(text) < 1500


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_but_a_path_is_wider_than_the_terminal(width, make_sample, make_evaluation) -> None:
    text = _print(
        width=width,
        before=make_evaluation(0, 0.1),
        after=make_evaluation(1, 0.2),
        samples=[make_sample(prompt="word " * 100, completion="x" * 500, answer="y" * 300)],
    )
    assert max(map(len, text.splitlines())) <= min(width, 100)


def test_a_path_stays_in_one_piece_and_an_offline_run_says_how_to_upload_it(tmp_path) -> None:
    deep = tmp_path / ("d" * 90)
    offline = deep / "wandb" / "offline-run-1"
    lines = _print(paths={"curves": deep / "curves.png", "W&B": offline}).splitlines()
    assert f"  curves  {deep / 'curves.png'}" in lines
    assert any(line.endswith(f"wandb sync {offline}") for line in lines)
    lines = _print(paths={"W&B": Path("wandb") / "run-1"}).splitlines()
    assert not any("wandb sync" in line for line in lines)


def test_scores_that_are_no_shares_are_told_as_a_mean_reward(make_evaluation) -> None:
    after = {"evaluation/reward_mean": -0.75, "evaluation/num_prompts": 40}
    text = _print(after=after)
    assert "Held-out reward" in text
    assert "-0.750  mean score of 40 prompts" in text
    assert "%" not in text
    before = {**make_evaluation(0, 0.25), "evaluation/reward_mean": 0.25}
    assert "0.250 -> -0.750" in _print(before=before, after=after)
