import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib.text import Annotation

from rl.tracking.comparison import (
    compare_runs,
    comparison_figure,
    comparison_table,
    draw_comparison,
    mean_and_range,
)
from rl.tracking.config import ReportConfig


def run(*, rewards: list[float], accuracy: dict[int, float]) -> list[dict]:
    steps = [{"event": "step", "step": i, "reward/mean": x} for i, x in enumerate(rewards, start=1)]
    evaluations = [
        {"event": "evaluation", "step": i, "evaluation/accuracy": x} for i, x in accuracy.items()
    ]
    return steps + evaluations


def save_run(path: Path, *, learning_rate: str, seed: int) -> None:
    path.mkdir(parents=True)
    config = {"seed": seed, "run_dir": str(path), "trainer": {"learning_rate": learning_rate}}
    (path / "config.yaml").write_text(json.dumps(config))
    rows = [{"event": "step", "time": 0.0, "step": 1, "reward/mean": 0.5}]
    (path / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def curves(axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_each_run_has_a_curve_of_rewards_and_one_of_accuracy():
    figure = comparison_figure(
        {
            "grpo": [run(rewards=[0.0, 1.0], accuracy={0: 0.1, 2: 0.5})],
            "ppo": [run(rewards=[0.5, 0.5, 0.5], accuracy={0: 0.1, 3: 0.25})],
        }
    )
    reward, accuracy = figure.axes
    assert [x for x, _ in curves(reward)] == [[1, 2], [1, 2, 3]]
    assert curves(accuracy) == [([0, 2], [10.0, 50.0]), ([0, 3], [10.0, 25.0])]
    assert {"grpo  10.0 \u2192 50.0%", "ppo  10.0 \u2192 25.0%"} <= set(labels(accuracy))


def test_a_run_without_evaluations_is_left_out_of_that_panel_alone():
    figure = comparison_figure(
        {"a": [run(rewards=[1.0], accuracy={})], "b": [run(rewards=[0.0], accuracy={})]}
    )
    reward, accuracy = figure.axes
    assert len(curves(reward)) == 2
    assert curves(accuracy) == []
    assert "none measured" in labels(accuracy)


def test_labels_of_runs_that_end_together_do_not_overlap():
    same = [run(rewards=[0.5, 0.5], accuracy={0: 0.0, 2: 1.0})]
    figure = comparison_figure({"a": same, "b": same, "c": same})
    marks = [
        t for t in figure.axes[1].texts if isinstance(t, Annotation) and "100.0" in t.get_text()
    ]
    heights = sorted(mark.xy[1] for mark in marks)
    assert len(heights) == 3
    gaps = [high - low for low, high in pairwise(heights)]
    assert all(gap > 2 for gap in gaps)


def test_more_runs_than_colours_are_refused():
    runs = {f"run{i}": [run(rewards=[0.0], accuracy={})] for i in range(11)}
    with pytest.raises(ValueError, match="at most 10 curves to be told apart, got 11"):
        comparison_figure(runs)


def test_the_picture_is_written_whole(tmp_path):
    draw_comparison({"a": [run(rewards=[0.0, 1.0], accuracy={2: 0.5})]}, tmp_path / "runs.png")
    assert [path.name for path in tmp_path.iterdir()] == ["runs.png"]
    assert (tmp_path / "runs.png").read_bytes().startswith(b"\x89PNG")


def test_a_mean_over_seeds_leaves_out_what_is_not_finite_and_says_how_many_runs_it_has():
    first = run(rewards=[0.0, 1.0, math.nan], accuracy={0: 0.1, 2: 0.5})
    second = run(rewards=[1.0, 1.0, 0.25], accuracy={0: 0.3})
    series = mean_and_range([first, second], "reward/mean")
    assert series.steps == [1, 2, 3]
    assert series.mean == [0.5, 1.0, 0.25]
    assert (series.least, series.greatest) == ([0.0, 1.0, 0.25], [1.0, 1.0, 0.25])
    assert series.counts == [2, 2, 1]
    assert mean_and_range([first, second], "evaluation/accuracy").mean == [0.2, 0.5]


def test_several_seeds_are_one_curve_with_a_band_and_a_cell_with_its_range():
    repeats = [run(rewards=[0.0], accuracy={1: 0.25}), run(rewards=[1.0], accuracy={1: 0.75})]
    figure = comparison_figure({"grpo": repeats})
    assert [len(axes.collections) for axes in figure.axes] == [1, 1]
    assert "grpo (2 runs)  50.0 \u2192 50.0%" in labels(figure.axes[1])
    table = comparison_table({"grpo": repeats, "none": [run(rewards=[], accuracy={})]})
    cells = [list(column.cells) for column in table.columns]
    assert [str(cells[0][0]), cells[1][0], cells[2][0]] == ["grpo", "2", "1"]
    assert cells[6] == ["50.0% [25.0%, 75.0%]", "-"]


def test_a_report_finds_a_sweep_groups_its_seeds_and_writes_the_picture(tmp_path):
    for rate in ("1e-5", "2e-5"):
        for seed in (0, 1):
            save_run(tmp_path / "sweep" / f"{rate}-{seed}", learning_rate=rate, seed=seed)
    output = str(tmp_path / "runs.png")
    table = compare_runs(ReportConfig(runs=[str(tmp_path / "sweep")], output=output))
    assert [str(cell) for cell in table.columns[0].cells] == [
        "learning_rate=1e-5",
        "learning_rate=2e-5",
    ]
    assert (tmp_path / "runs.png").is_file()


def test_a_picture_that_has_nowhere_to_go_is_refused_before_anything_is_drawn(tmp_path):
    save_run(tmp_path / "run", learning_rate="1e-5", seed=0)
    output = str(tmp_path / "nowhere" / "runs.png")
    with pytest.raises(ValueError, match="output must be in a directory that exists"):
        compare_runs(ReportConfig(runs=[str(tmp_path / "run")], output=output))
