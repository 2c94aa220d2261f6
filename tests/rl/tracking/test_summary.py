import io
from pathlib import Path

import pytest
from rich.console import Console

from rl.tracking.summary import print_summary


def _print(*, width: int = 80, before=None, after=None, samples=(), paths=None) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_summary(console, before=before, after=after, samples=samples, paths=paths or {})
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_accuracy_is_told_before_and_after_in_percent_points_and_counts(make_evaluation) -> None:
    text = _print(before=make_evaluation(0, 0.159), after=make_evaluation(60, 0.573))
    assert "15.9% -> 57.3%   +41.4 points" in text
    assert "159 of 1,000 right before, 573 of 1,000 right after" in text


def test_a_run_without_evaluations_says_so(make_evaluation) -> None:
    assert "not evaluated" in _print()
    assert "57.3%  573 of 1,000 right" in _print(after=make_evaluation(60, 0.573))


def test_three_answers_are_shown_with_a_mark_each(make_sample) -> None:
    rewards = [1.0, 0.0, None, 1.0]
    samples = [make_sample(prompt=f"q{i}", reward=reward) for i, reward in enumerate(rewards)]
    text = _print(samples=samples)
    marks = [line.split()[:3] for line in text.splitlines() if " prompt " in line]
    assert marks == [["✓", "prompt", "q0"], ["✗", "prompt", "q1"], ["?", "prompt", "q2"]]


def test_credit_for_parts_is_neither_right_nor_wrong(make_evaluation, make_sample) -> None:
    text = _print(after=make_evaluation(60, 0.1234), samples=[make_sample(reward=0.25)])
    assert "12.3%  123.4 of 1,000 points" in text
    assert "0.25  prompt" in text


def test_a_long_answer_keeps_its_end_and_markup_is_only_text(make_sample) -> None:
    text = _print(samples=[make_sample(completion="[red]so\n" + "and then " * 200 + "it is 17")])
    assert "[red]so and then" in text
    assert "it is 17" in text
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
