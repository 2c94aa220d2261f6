import math
import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rl.tracking.curves import HEIGHT_PIXELS, WIDTH_PIXELS, curves_figure, draw_curves

TITLES = {
    "reward/mean": "Reward",
    "evaluation/accuracy": "Held-out accuracy",
    "rollout/length_mean": "Completion length",
    "policy/entropy": "Entropy",
    "rollout/tokens_per_second": "Rollout speed",
    "mismatch/logprob_difference_max": "Trainer against engine",
    "seconds/step": "Time of a step",
}
DRAFTS = ["Drafts", "Drafts by position", "Drafts, with and without"]


@pytest.fixture
def events(make_step, make_evaluation) -> list[dict[str, Any]]:
    rows = [{"event": "run_start", "time": 0.0}]
    rows += [{"event": "evaluation", "time": 1.0} | make_evaluation(0, 0.125)]
    rows += [{"event": "step", "time": 5.0 * step} | make_step(step) for step in range(1, 21)]
    rows += [{"event": "checkpoint", "time": 100.0, "step": 20}]
    return [*rows, {"event": "evaluation", "time": 101.0} | make_evaluation(20, 0.5)]


def _axes(figure: Figure, key: str) -> Axes:
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == TITLES[key])
    return axes


def _texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_png_of_1600_by_900_takes_the_place_of_the_old_one(events, tmp_path: Path) -> None:
    path = tmp_path / "curves.png"
    path.write_text("old")
    draw_curves(events, path, title="run")
    png = path.read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (WIDTH_PIXELS, HEIGHT_PIXELS)
    assert len(png) > 50_000
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_the_old_png_stays_when_drawing_fails(events, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "curves.png"
    path.write_text("old")

    def tear(figure: Figure, file: Path, **_: Any) -> None:
        file.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", tear)
    with pytest.raises(OSError, match="disk full"):
        draw_curves(events, path, title="run")
    assert path.read_text() == "old"


def test_every_metric_has_its_panel(events) -> None:
    figure = curves_figure(events, title="run")
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(TITLES.values())


def test_a_run_that_speculates_shows_what_became_of_its_drafts(events) -> None:
    steps = [row for row in events if row["event"] == "step"]
    for row in steps:
        row |= {
            "speculation/proposed_tokens": 100.0,
            "speculation/accepted_tokens": 80.0,
            "speculation/draft_seconds": 0.01 * row["seconds/rollout"],
            "speculation/acceptance_at_1": 0.9,
            "speculation/acceptance_at_4": 0.5,
            "speculation/tokens_per_second_with": 300.0,
        }
    steps[7]["speculation/tokens_per_second_without"] = 150.0  # a control step
    figure = curves_figure(events, title="run")
    assert [axes.get_title(loc="left") for axes in figure.axes] == [*TITLES.values(), *DRAFTS]
    counts, positions, gain = figure.axes[-3:]
    assert _texts(counts)[1:] == ["100", "80"]
    assert counts.get_title(loc="right") == "drafting 1.0% of the rollout time"
    assert _texts(positions)[1:] == ["1: 90%", "4: 50%"]
    assert _texts(gain)[1:] == ["300", "150"]


@pytest.mark.parametrize("missing", ["reward/mean", "policy/entropy", "seconds/step"])
def test_a_metric_that_no_row_has_takes_its_panel_along(events, missing: str) -> None:
    rows = [{key: value for key, value in row.items() if key != missing} for row in events]
    figure = curves_figure(rows, title="run")
    shown = [axes.get_title(loc="left") for axes in figure.axes]
    assert shown == [title for key, title in TITLES.items() if key != missing]


def test_rows_that_lack_a_metric_lack_only_their_point(events) -> None:
    del events[5]["policy/entropy"]
    dots = _axes(curves_figure(events, title="run"), "policy/entropy").lines[0]
    assert list(dots.get_xdata()) == [step for step in range(1, 21) if step != events[5]["step"]]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_run_that_has_just_begun_can_be_drawn(events, count: int, tmp_path: Path) -> None:
    draw_curves(events[:count], tmp_path / "curves.png", title="run")
    assert (tmp_path / "curves.png").stat().st_size > 5_000


def test_the_first_and_last_accuracy_are_written_out(events) -> None:
    axes = _axes(curves_figure(events, title="run"), "evaluation/accuracy")
    assert {"12.5%", "50.0%"} <= set(_texts(axes))
    assert list(axes.lines[0].get_ydata()) == [12.5, 50.0]


def test_a_mismatch_of_zero_is_called_bit_for_bit(events) -> None:
    axes = _axes(curves_figure(events, title="run"), "mismatch/logprob_difference_max")
    assert "0.0: bit for bit" in _texts(axes)


@pytest.mark.parametrize("value", [1e-9, math.nan])
def test_one_mismatch_that_is_not_zero_ends_bit_for_bit(events, value: float) -> None:
    events[7]["mismatch/logprob_difference_max"] = value
    figure = curves_figure(events, title="run")
    figure.draw_without_rendering()
    axes = _axes(figure, "mismatch/logprob_difference_max")
    assert "0.0: bit for bit" not in _texts(axes)
    assert ("1.0e-09" in _texts(axes)) or axes.get_title(loc="right") == "1 not finite"


def test_values_that_are_not_finite_are_counted_where_they_are_left_out(events) -> None:
    for row in events:
        if "policy/entropy" in row:
            row["policy/entropy"] = math.nan
    events[4]["reward/mean"] = math.inf
    figure = curves_figure(events, title="run")
    figure.draw_without_rendering()
    assert _axes(figure, "policy/entropy").get_title(loc="right") == "20 not finite"
    assert _axes(figure, "reward/mean").get_title(loc="right") == "1 not finite"


@pytest.mark.parametrize("num_steps", [1, 20, 500])
def test_the_phases_stack_up_to_the_whole_step(make_step, num_steps: int) -> None:
    rows = [{"event": "step", "time": 0.0} | make_step(step) for step in range(1, num_steps + 1)]
    axes = _axes(curves_figure(rows, title="run"), "seconds/step")
    stacks = [patch.get_data() for patch in axes.patches]
    assert len(stacks) == 6
    assert stacks[-1].values == pytest.approx([5.0] * len(stacks[-1].values))
    assert (stacks[-1].edges[0], stacks[-1].edges[-1]) == (0.5, num_steps + 0.5)
    assert stacks[1].baseline == pytest.approx(stacks[0].values)
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[0] == "rollout  1.5 s, 30%"
    assert legend[-1] == "other  0.62 s, 12%"


def test_smoothing_leaves_a_constant_alone_and_averages_noise(make_step) -> None:
    rows = [{"event": "step", "time": 0.0} | make_step(step) for step in range(1, 301)]
    for row in rows:
        row["reward/mean"] = float(row["step"] % 2)
    figure = curves_figure(rows, title="run")
    assert list(_axes(figure, "policy/entropy").lines[1].get_ydata()) == pytest.approx([0.43] * 300)
    reward = _axes(figure, "reward/mean").lines[1].get_ydata()
    assert list(reward[30:-30]) == pytest.approx([0.5] * 240, abs=1e-3)


def test_staleness_is_drawn_beside_what_was_predicted(events) -> None:
    for step, event in enumerate(e for e in events if e["event"] == "step"):
        event |= {"staleness/mean": step % 2, "staleness/max": 1}
        if step % 3 == 0:  # not at every step is there something to predict from
            event["staleness/predicted"] = 0.5
    figure = curves_figure(events, title="run")
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == "Staleness")
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["max"] == [1] * 20
    assert drawn["predicted"] == [0.5] * 7


def test_lengths_of_all_that_were_begun_are_drawn_beside_those_of_the_kept(events) -> None:
    assert _axes(curves_figure(events, title="run"), "rollout/length_mean").get_legend() is None
    for event in events:
        if event["event"] == "step":
            event["overprovision/length_mean_begun_at_least"] = 31.5
    axes = _axes(curves_figure(events, title="run"), "rollout/length_mean")
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}
    assert drawn["all begun, at least"] == [31.5] * 20


def test_scores_that_are_no_shares_are_drawn_as_a_reward() -> None:
    events = [
        {"event": "evaluation", "step": 0, "evaluation/reward_mean": -1.0},
        {"event": "evaluation", "step": 9, "evaluation/reward_mean": 2.0},
    ]
    titles = [axes.get_title(loc="left") for axes in curves_figure(events, title="run").axes]
    assert any("Held-out reward" in title for title in titles)
    assert not any("accuracy" in title for title in titles)
