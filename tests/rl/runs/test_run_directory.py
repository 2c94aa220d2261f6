"""One run per directory: claimed atomically, refused when it holds something, free again when nothing came of it."""

import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from rl.runs import directory as run_directory
from rl.runs.directory import claim_run_dir
from rl.tracking.events import EventLog


@pytest.fixture
def in_one_second(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Clock:
        @staticmethod
        def now() -> datetime:
            return datetime(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(run_directory, "datetime", Clock)
    monkeypatch.chdir(tmp_path)


def write_event(directory: Path, event: str) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    log = EventLog(directory / "events.jsonl")
    log.write(event, {"step": 1})
    log.close()


def test_runs_that_start_in_the_same_second_get_different_directories(in_one_second):
    with claim_run_dir("") as first, claim_run_dir("") as second, claim_run_dir("") as third:
        paths = [str(claimed.path) for claimed in (first, second, third)]
    assert paths == [f"outputs/2026-01-02/03-04-05{end}" for end in ("", "-2", "-3")]


def test_of_two_runs_with_the_same_explicit_directory_the_second_is_refused(tmp_path):
    with claim_run_dir(str(tmp_path / "run")):
        message = rf"belongs to a run in progress \(process {os.getpid()} on "
        with pytest.raises(ValueError, match=message):
            claim_run_dir(str(tmp_path / "run"))
        with pytest.raises(ValueError, match="in progress"):
            claim_run_dir(str(tmp_path / "run"), goes_on=True)


def test_a_claim_ends_with_the_process_that_died(tmp_path):
    code = (
        "import os; from rl.runs.directory import claim_run_dir\n"
        f"claimed = claim_run_dir({str(tmp_path / 'run')!r})\nos._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    assert (tmp_path / "run" / ".lock").exists()
    with claim_run_dir(str(tmp_path / "run")):
        pass


@pytest.mark.parametrize(
    "name", ["weights/v3", "trainer/v3.pt", "events.jsonl"], ids=["weights", "state", "events"]
)
def test_a_directory_that_holds_something_of_a_run_is_refused_and_left_as_it_is(tmp_path, name):
    run_dir = tmp_path / "run"
    if name == "events.jsonl":
        write_event(run_dir, "step")
    else:
        (run_dir / name).mkdir(parents=True)
    with pytest.raises(
        ValueError, match=rf"run_dir={re.escape(str(run_dir))} already contains a run"
    ):
        claim_run_dir(str(run_dir))
    assert (run_dir / name).exists()
    with claim_run_dir(str(run_dir), goes_on=True):
        pass
    assert (run_dir / name).exists()


def test_a_directory_of_somebody_else_is_used_and_not_removed(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "slurm.log").write_text("hello")
    with claim_run_dir(str(tmp_path / "run")) as claimed:
        (claimed.path / "config.yaml").write_text("seed: 0\n")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["slurm.log"]
    (tmp_path / "empty").mkdir()
    with claim_run_dir(str(tmp_path / "empty")):
        pass
    assert (tmp_path / "empty").is_dir()


def test_a_start_up_that_failed_leaves_nothing(tmp_path):
    with claim_run_dir(str(tmp_path / "run")) as claimed:
        (claimed.path / "config.yaml").write_text("seed: 0\n")
        (claimed.path / "events.jsonl").write_text("")
        (claimed.path / "wandb").mkdir()
    assert not (tmp_path / "run").exists()


def test_a_run_that_ended_before_its_first_step_is_written_over(tmp_path):
    with claim_run_dir(str(tmp_path / "run")) as claimed:
        write_event(claimed.path, "run_start")
    assert (tmp_path / "run" / "events.jsonl").exists(), "what went wrong can be read"
    with claim_run_dir(str(tmp_path / "run")) as claimed:
        assert not (claimed.path / "events.jsonl").exists()


def test_a_run_stays_and_its_lock_goes(tmp_path):
    with claim_run_dir(str(tmp_path / "run")) as claimed:
        write_event(claimed.path, "step")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["events.jsonl"]


def test_a_file_in_the_place_of_the_directory_is_one_sentence(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="must be a directory that can be written to: File exists"):
        claim_run_dir(str(tmp_path / "run"))
    with pytest.raises(ValueError, match="must be a directory that can be written to"):
        claim_run_dir(str(tmp_path / "run" / "below"))
