"""Whole runs of the tiny model, started as a user starts them, in this process, which has paid for the imports."""

import contextlib
import io
import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from rl.tracking.events import read_events

ROOT = Path(__file__).parents[2]
SMALL = ("model=tiny", "debug=smoke", "reward.num_workers=1")
ANYTHING = "task.scorer=tests/e2e/any_scorer.py:score"  # the tiny model gives no right answer


def command(run_dir: Path, *overrides: str) -> list[str]:
    return ["scripts/train.py", *SMALL, f"run_dir={run_dir}", *overrides]


def train(run_dir: Path, *overrides: str, code: int = 0) -> str:
    """Run scripts/train.py; returns what it printed."""
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", command(run_dir, *overrides)),
        mock.patch.dict(os.environ, {"COLUMNS": "120"}),
        contextlib.chdir(ROOT),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
        pytest.raises(SystemExit) as exit_info,
    ):
        runpy.run_path("scripts/train.py", run_name="__main__")
    assert exit_info.value.code == code, output.getvalue()
    return output.getvalue()


def steps_of(run_dir: Path) -> list[dict]:
    return [row for row in read_events(run_dir / "events.jsonl") if row["event"] == "step"]


def weights_of(run_dir: Path, version: int) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "weights" / f"v{version}" / "model.safetensors")
