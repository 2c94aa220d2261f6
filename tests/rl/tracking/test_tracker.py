import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rl.tracking import tracker as tracker_module
from rl.tracking.config import TrackingConfig, WandbConfig, WandbMode
from rl.tracking.events import read_events
from rl.tracking.tracker import Tracker
from rl.trainer.config import LRSchedule


class _FakeSink:
    """Notes, for each row it gets, how many events were on disk by then."""

    directory = None

    def __init__(
        self, config: WandbConfig, run_dir: Path, run_config: dict, *, console, **_: Any
    ) -> None:
        self.run_config = run_config
        self.rows: list[tuple[int, dict[str, float], list[Any]]] = []
        self.num_events: list[int] = []
        self.exit_code: int | None = None
        self._events = run_dir / "events.jsonl"

    def log(self, step: int, metrics: dict[str, float], *, samples: Any = ()) -> None:
        self.rows.append((step, metrics, list(samples)))
        self.num_events.append(len(read_events(self._events)))

    def finish(self, *, exit_code: int = 0) -> None:
        self.exit_code = exit_code


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setattr(tracker_module, "WandbSink", _FakeSink)
    return tmp_path / "outputs" / "run"


def _start(run_dir: Path, *, run_config: dict[str, Any] | None = None, **config: Any) -> Tracker:
    disabled = WandbConfig(mode=WandbMode.disabled)
    return Tracker(
        TrackingConfig(wandb=disabled, **config),
        run_dir,
        run_config or {},
        total_steps=4,
        console=Console(file=io.StringIO()),
    )


def test_every_row_is_in_the_event_log_before_wandb_hears_of_it(
    run_dir, make_step, make_evaluation
) -> None:
    with _start(run_dir) as tracker:
        tracker.run_start({"seed": 0})
        tracker.evaluation(make_evaluation(0, 0.25))
        tracker.step(make_step(1), [])
        tracker.checkpoint({"step": 1, "path": "checkpoints/1"})
        tracker.run_end({"steps": 1})
    kinds = [row["event"] for row in read_events(run_dir / "events.jsonl")]
    assert kinds == ["run_start", "evaluation", "step", "checkpoint", "run_end"]
    assert tracker._wandb.num_events == [2, 3]
    assert [row[0] for row in tracker._wandb.rows] == [0, 1]
    assert tracker._wandb.exit_code == 0


def test_wandb_gets_the_resolved_config_with_enums_by_name(run_dir) -> None:
    config = {"trainer": {"lr_schedule": LRSchedule.cosine, "learning_rate": 1e-6}, "stop": ["$"]}
    with _start(run_dir, run_config=config) as tracker:
        pass
    expected = {"trainer": {"lr_schedule": "cosine", "learning_rate": 1e-6}, "stop": ["$"]}
    assert tracker._wandb.run_config == expected


def test_sampled_rollouts_are_spread_over_the_groups(run_dir, make_step, make_sample) -> None:
    rollouts = [make_sample(group_id=group, sample_index=i) for group in range(2) for i in range(8)]
    with _start(run_dir, num_samples_per_step=4) as tracker:
        tracker.step(make_step(1), rollouts)
        tracker.step(make_step(2), rollouts[:3])
    lines = (run_dir / "samples.jsonl").read_text().splitlines()
    written = [(row["group_id"], row["sample_index"]) for row in map(json.loads, lines)]
    assert written == [(0, 0), (0, 4), (1, 0), (1, 4), (0, 0), (0, 1), (0, 2)]
    assert [len(samples) for _, _, samples in tracker._wandb.rows] == [4, 3]


def test_no_samples_are_written_when_none_are_wanted(run_dir, make_step, make_sample) -> None:
    with _start(run_dir, num_samples_per_step=0) as tracker:
        tracker.step(make_step(1), [make_sample()])
    assert (run_dir / "samples.jsonl").read_text() == ""


def test_an_exception_becomes_the_end_of_the_run_and_passes_on(run_dir, make_step) -> None:
    def train() -> None:
        with _start(run_dir) as tracker:
            sinks.append(tracker._wandb)
            tracker.run_start({})
            tracker.step(make_step(1), [])
            raise RuntimeError("out of blocks")

    sinks = []
    with pytest.raises(RuntimeError, match="out of blocks"):
        train()
    last = read_events(run_dir / "events.jsonl")[-1]
    assert (last["event"], last["error"]) == ("run_end", "RuntimeError: out of blocks")
    assert sinks[0].exit_code == 1
    assert (run_dir / "curves.png").exists()


@pytest.mark.parametrize("error", [OverflowError("too large"), OSError("disk full")])
def test_curves_and_lines_that_fail_are_a_warning_and_no_end_of_the_run(
    run_dir, make_step, make_evaluation, monkeypatch, caplog, error
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(tracker_module, "draw_curves", fail)
    with _start(run_dir, curves_every_steps=1) as tracker:
        tracker.run_start({})
        tracker.progress.step_line = tracker.progress.evaluation_line = fail
        for step in range(1, 4):
            tracker.step(make_step(step), [])
        tracker.evaluation(make_evaluation(3, 0.5))
        tracker.run_end({})
    kinds = [row["event"] for row in read_events(run_dir / "events.jsonl")]
    assert kinds == ["run_start", "step", "step", "step", "evaluation", "run_end"]
    assert tracker._wandb.exit_code == 0
    assert caplog.text.count("curves.png failed, and the run goes on") == 1
    assert caplog.text.count("the line of a step failed") == 1


def test_a_run_that_was_told_to_stop_is_not_finished_at_wandb_either(run_dir) -> None:
    with _start(run_dir) as tracker:
        tracker.run_start({})
        tracker.run_end({"status": "interrupted"}, exit_code=130)
    last = read_events(run_dir / "events.jsonl")[-1]
    assert (last["status"], last["exit_code"]) == ("interrupted", 130)
    assert tracker._wandb.exit_code == 130


def test_a_start_up_that_fails_is_no_run(run_dir) -> None:
    with pytest.raises(RuntimeError), _start(run_dir) as tracker:
        raise RuntimeError
    assert read_events(run_dir / "events.jsonl") == []
    assert tracker._wandb.exit_code == 1


def test_curves_are_drawn_every_so_many_steps_and_at_the_end(
    run_dir, make_step, monkeypatch
) -> None:
    drawn = []
    monkeypatch.setattr(
        tracker_module, "draw_curves", lambda events, path, title: drawn.append(len(events))
    )
    with _start(run_dir, curves_every_steps=2) as tracker:
        for step in range(1, 6):
            tracker.step(make_step(step), [])
    assert drawn == [2, 4, 5]


def test_the_files_a_user_may_want_all_exist(run_dir, make_step, make_sample) -> None:
    with _start(run_dir) as tracker:
        (run_dir / "config.yaml").write_text("seed: 0\n")
        tracker.step(make_step(1), [make_sample()])
    assert list(tracker.paths) == ["curves", "events", "samples", "config"]
    assert all(path.stat().st_size > 0 for path in tracker.paths.values())


def test_wandb_can_filter_by_the_names_of_the_chosen_options(run_dir) -> None:
    config = {"algorithm": {"clip_low": 0.2}, "fleet": {}, "seed": 1}
    names = {"algorithm": "ppo", "fleet": "inline", "version": "0.1.0"}
    tracker = Tracker(
        TrackingConfig(), run_dir, config, total_steps=4, names=names, console=Console(file=io.StringIO()),
    )  # fmt: skip
    assert tracker._wandb.run_config == {
        "algorithm": {"name": "ppo", "clip_low": 0.2},
        "fleet": "inline",
        "seed": 1,
        "version": "0.1.0",
    }
