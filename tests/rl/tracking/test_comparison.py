from itertools import pairwise

import pytest
from matplotlib.text import Annotation

from rl.tracking.comparison import comparison_figure, draw_comparison, draw_runs
from rl.tracking.config import ReportConfig


def run(*, rewards: list[float], accuracy: dict[int, float]) -> list[dict]:
    steps = [{"event": "step", "step": i, "reward/mean": x} for i, x in enumerate(rewards, start=1)]
    evaluations = [
        {"event": "evaluation", "step": i, "evaluation/accuracy": x} for i, x in accuracy.items()
    ]
    return steps + evaluations


def curves(axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_each_run_has_a_curve_of_rewards_and_one_of_accuracy():
    figure = comparison_figure(
        {
            "grpo": run(rewards=[0.0, 1.0], accuracy={0: 0.1, 2: 0.5}),
            "ppo": run(rewards=[0.5, 0.5, 0.5], accuracy={0: 0.1, 3: 0.25}),
        }
    )
    reward, accuracy = figure.axes
    assert [x for x, _ in curves(reward)] == [[1, 2], [1, 2, 3]]
    assert curves(accuracy) == [([0, 2], [10.0, 50.0]), ([0, 3], [10.0, 25.0])]
    assert {"grpo  10.0 \u2192 50.0%", "ppo  10.0 \u2192 25.0%"} <= set(labels(accuracy))


def test_a_run_without_evaluations_is_left_out_of_that_panel_alone():
    figure = comparison_figure(
        {"a": run(rewards=[1.0], accuracy={}), "b": run(rewards=[0.0], accuracy={})}
    )
    reward, accuracy = figure.axes
    assert len(curves(reward)) == 2
    assert curves(accuracy) == []
    assert "none measured" in labels(accuracy)


def test_labels_of_runs_that_end_together_do_not_overlap():
    same = run(rewards=[0.5, 0.5], accuracy={0: 0.0, 2: 1.0})
    figure = comparison_figure({"a": same, "b": same, "c": same})
    marks = [
        t for t in figure.axes[1].texts if isinstance(t, Annotation) and "100.0" in t.get_text()
    ]
    heights = sorted(mark.xy[1] for mark in marks)
    assert len(heights) == 3
    gaps = [high - low for low, high in pairwise(heights)]
    assert all(gap > 2 for gap in gaps)


def test_more_runs_than_colours_are_refused():
    runs = {f"run{i}": run(rewards=[0.0], accuracy={}) for i in range(11)}
    with pytest.raises(ValueError, match="at most 10 to be told apart, got 11"):
        comparison_figure(runs)


def test_the_picture_is_written_whole(tmp_path):
    draw_comparison({"a": run(rewards=[0.0, 1.0], accuracy={2: 0.5})}, tmp_path / "runs.png")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.png"]
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_one_per_run():
    with pytest.raises(
        ValueError, match=r"names must be 2 different names, one per run, got \['a'\]"
    ):
        ReportConfig(runs=["x", "y"], names=["a"])


def test_what_cannot_be_drawn_is_said_before_anything_is(tmp_path):
    for directory in ("monday/run", "tuesday/run"):
        (tmp_path / directory).mkdir(parents=True)
        (tmp_path / directory / "events.jsonl").touch()
    both = [str(tmp_path / "monday" / "run"), str(tmp_path / "tuesday" / "run")]
    output = str(tmp_path / "runs.png")
    with pytest.raises(ValueError, match=r"called the same, \['run', 'run'\]; set names="):
        draw_runs(ReportConfig(runs=both, output=output))
    with pytest.raises(ValueError, match=r"with an events\.jsonl each; got .*monday'\]"):
        draw_runs(ReportConfig(runs=[both[0], str(tmp_path / "monday")], output=output))
    with pytest.raises(ValueError, match="output must be in a directory that exists"):
        draw_runs(ReportConfig(runs=both[:1], output=str(tmp_path / "nowhere" / "runs.png")))
    assert not list(tmp_path.glob("*.png"))
    draw_runs(ReportConfig(runs=both, names=["monday", "tuesday"], output=output))
