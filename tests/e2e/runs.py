"""Whole runs of the tiny model, started as a user starts them, in this process, which has paid for the imports."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from rl.tracking.events import read_events
from tests.glossary import unexplained

ROOT = Path(__file__).parents[2]
SMALL = ("model=tiny", "debug=smoke", "reward.num_workers=1")
ANYTHING = "task.scorer=tests/e2e/any_scorer.py:score"  # the tiny model gives no right answer


def command(run_dir: Path, *overrides: str) -> list[str]:
    return ["scripts/train.py", *SMALL, f"run_dir={run_dir}", *overrides]


def train(run_dir: Path, *overrides: str, code: int = 0) -> str:
    """Run scripts/train.py on something small; returns what it printed."""
    output = run_script("train", *command(run_dir, *overrides)[1:], code=code)
    events = run_dir / "events.jsonl"
    written = {name for row in (read_events(events) if events.exists() else []) for name in row}
    assert unexplained(written) == set(), "docs/guide/metrics.md explains every metric"
    return output


def run_script(name: str, *overrides: str, code: int = 0) -> str:
    """Run scripts/<name>.py with this command line; returns what it printed."""
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", [f"scripts/{name}.py", *overrides]),
        mock.patch.dict(os.environ, {"COLUMNS": "120"}),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        pytest.raises(SystemExit) as exit_info,
    ):
        runpy.run_path(f"scripts/{name}.py", run_name="__main__")
    assert exit_info.value.code == code, output.getvalue()
    return output.getvalue()


def start(run_dir: Path, *overrides: str, **variables: str) -> subprocess.Popen:
    """Start a run in a process group of its own, as a shell does for a job; it prints to `log_of(run_dir)`."""
    log = log_of(run_dir).open("w")
    return subprocess.Popen(
        [sys.executable, *command(run_dir, *overrides)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"} | variables,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def wait_until(run_dir: Path, is_true: Callable[[], bool], *, seconds: float = 200.0) -> None:
    """Wait until a condition holds for a run that `start` began."""
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, log_of(run_dir).read_text()
        time.sleep(0.1)


def wait_for_step(run_dir: Path, step: int, *, seconds: float = 200.0) -> None:
    events = run_dir / "events.jsonl"
    wait_until(run_dir, lambda: events.exists() and len(steps_of(run_dir)) >= step, seconds=seconds)


def log_of(run_dir: Path) -> Path:
    return run_dir.parent / f"{run_dir.name}.log"


def steps_of(run_dir: Path) -> list[dict]:
    return [row for row in read_events(run_dir / "events.jsonl") if row["event"] == "step"]


def weights_of(run_dir: Path, version: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "weights" / f"v{version}" / "model.safetensors")


def assert_same_weights(first: Path, second: Path, version: int) -> None:
    ours, theirs = weights_of(first, version), weights_of(second, version)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
