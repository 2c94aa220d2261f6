import io

import pytest
from rich.console import Console

from rl.tracking import progress as progress_module
from rl.tracking.progress import Progress


class _Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    return clock


def _pipe() -> Console:
    return Console(file=io.StringIO(), width=40)


def _terminal() -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)


def _written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_a_step_is_one_plain_line_however_long(make_step) -> None:
    console = _pipe()
    with Progress(60, console=console) as progress:
        progress.begin_phase("rollout")
        progress.advance(3, 10)
        for step in (1, 2):
            progress.step_line(make_step(step))
    lines = _written(console).splitlines()
    assert len(lines) == 2
    assert lines[1] == (
        "step   2/60  reward 0.773  length   6.1  entropy 0.430   1,234 tok/s"
        "  mismatch 0.0        5.0 s (rollout 1.8, train 2.5)"
    )


def test_lines_of_different_steps_align(make_step) -> None:
    console = _pipe()
    progress = Progress(100, console=console)
    progress.step_line(make_step(1))
    progress.step_line(
        make_step(100)
        | {"mismatch/logprob_difference_max": 2.5e-3, "rollout/tokens_per_second": 98765.4}
        | {"seconds/step": 123.4}
    )
    first, second = _written(console).splitlines()
    assert "mismatch 2.5e-03" in second
    assert [first.index(word) for word in ("reward", "tok/s", " s (")] == [
        second.index(word) for word in ("reward", "tok/s", " s (")
    ]


def test_metrics_that_are_missing_are_left_out_of_the_line() -> None:
    console = _pipe()
    Progress(9, console=console).step_line({"step": 3, "policy/entropy": 0.5})
    assert _written(console) == "step  3/9  entropy 0.500\n"


def test_completions_without_a_score_are_called_out(make_step) -> None:
    console = _pipe()
    Progress(9, console=console).step_line(make_step(1) | {"reward/error_rate": 0.125})
    assert _written(console).endswith("12% could not be scored\n")


def test_an_evaluation_tells_the_points_gained_since_the_first(make_evaluation) -> None:
    console = _pipe()
    progress = Progress(60, console=console)
    progress.evaluation_line(make_evaluation(0, 0.5))
    progress.evaluation_line(make_evaluation(60, 0.375))
    assert _written(console).splitlines() == [
        "eval   0/60  held-out accuracy 50.0%  of 1,000 prompts",
        "eval  60/60  held-out accuracy 37.5% (-12.5 points)  of 1,000 prompts",
    ]


def test_on_a_terminal_the_bar_shows_the_phase_and_the_time_left(make_step, clock) -> None:
    console = _terminal()
    with Progress(10, console=console) as progress:
        progress.step_line(make_step(4))
        progress.begin_phase("evaluation")
        clock.now = 1.0
        progress.advance(340, 1000)
    frames = _written(console)
    assert "step 4/10" in frames
    assert "evaluation 340/1000 0:00:01 elapsed, 0:00:30 left" in frames


def test_the_bar_is_drawn_at_most_four_times_a_second_within_a_phase(clock) -> None:
    console = _terminal()
    with Progress(10, console=console) as progress:
        progress.begin_phase("rollout")
        for done in range(1000):
            clock.now += 0.002
            progress.advance(done, 1000)
    num_frames = sum(f"rollout {done}/1000" in _written(console) for done in range(1000))
    assert 6 <= num_frames <= 8


def test_a_disabled_bar_leaves_only_the_lines_on_a_terminal(make_step) -> None:
    console = _terminal()
    with Progress(10, console=console, enabled=False) as progress:
        progress.begin_phase("rollout")
        progress.step_line(make_step(1))
    assert "rollout" not in _written(console).replace("(rollout", "")


def test_an_evaluation_whose_scores_are_no_shares_shows_their_mean() -> None:
    console = _pipe()
    with Progress(60, console=console) as progress:
        progress.evaluation_line({"step": 0, "evaluation/reward_mean": -1.5})
    assert "held-out reward -1.500" in _written(console)
    assert "%" not in _written(console)
