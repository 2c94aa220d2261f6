"""Whole runs of the tiny model with rollouts that begin before the weights are there that train on them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rl.runs.checkpoint import load_checkpoint
from rl.tracking.events import read_events
from tests.e2e.runs import ROOT, command, steps_of, train, weights_of

# so few slots that some of what is begun waits, and evaluations come while training rollouts are in flight
OVERRIDES = (
    "sampling.max_tokens=16",
    "engine.max_requests=24",
    "tracking.num_samples_per_step=1000",
)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every group has signal, so that every rollout is trained on."""
    path = tmp_path_factory.mktemp("scorer") / "scorer.py"
    path.write_text("def score(completion, row):\n    return float(len(completion) % 5)\n")
    return f"task.scorer={path}:score"


def groups_of(run_dir: Path, *, up_to: int = 1000) -> list[list[int]]:
    """Of each step, in the order of training."""
    steps: dict[int, list[int]] = {}
    for line in (run_dir / "samples.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["step"] <= up_to:
            steps.setdefault(row["step"], []).append(row["group_id"])
    return list(steps.values())


def batches(num_steps: int) -> list[list[int]]:
    return [list(range(4 * i, 4 * i + 4)) for i in range(num_steps)]


@pytest.mark.parametrize(
    ("max_staleness", "on_update"), [(1, "recompute"), (4, "recompute"), (4, "drain"), (1, "keep")]
)
def test_staleness_is_bounded_and_tokens_of_the_current_version_agree_to_the_bit(
    tmp_path, scorer, max_staleness, on_update
):
    train(
        tmp_path / "run",
        *OVERRIDES,
        scorer,
        f"max_staleness={max_staleness}",
        f"engine.on_update={on_update}",
        "trainer.num_steps=7",
    )
    rows = steps_of(tmp_path / "run")
    assert groups_of(tmp_path / "run") == batches(7)
    assert 0 < max(row["staleness/max"] for row in rows) <= max_staleness
    assert all(0 <= row["staleness/mean"] <= row["staleness/max"] for row in rows)
    assert any("staleness/predicted" in row for row in rows)
    fresh = [row["staleness/fresh_fraction"] for row in rows]
    assert fresh[0] == 1.0
    assert min(fresh) < 0.5, "much of what was trained was stale"
    assert all(row["staleness/k3"] > 0 for row in rows if row["staleness/fresh_fraction"] < 1)
    exact = [row["mismatch/logprob_difference_max"] for row in rows if "mismatch/k3" in row]
    assert len(exact) > 1
    assert set(exact) == {0.0}, "what is stale is in staleness/k3"
    evaluations = [
        r for r in read_events(tmp_path / "run" / "events.jsonl") if "evaluation/reward_mean" in r
    ]
    assert len(evaluations) == 5


def test_an_asynchronous_run_is_the_same_run_every_time(tmp_path, scorer):
    for name in "ab":
        train(
            tmp_path / name,
            *OVERRIDES,
            scorer,
            "max_staleness=2",
            "engine.on_update=recompute",
            "trainer.num_steps=5",
        )
    first, second = (weights_of(tmp_path / name, 5) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
    samples = [(tmp_path / name / "samples.jsonl").read_text() for name in "ab"]
    assert samples[0] == samples[1]


def test_without_a_correction_stale_tokens_are_warned_of(tmp_path, caplog):
    train(
        tmp_path / "run",
        "max_staleness=1",
        "correction.max_importance_weight=0",
        "trainer.num_steps=1",
        "evaluation.every_steps=0",
    )
    assert "max_staleness=1 without a correction" in caplog.text


@pytest.mark.slow
def test_killed_and_resumed_nothing_is_lost_and_nothing_trained_twice(tmp_path, scorer):
    killed, resumed = tmp_path / "killed", tmp_path / "resumed"
    overrides = (*OVERRIDES, scorer, "max_staleness=2", "engine.on_update=keep")
    forever = (*overrides, "trainer.num_steps=100000", "checkpoint.every_steps=3")
    process = subprocess.Popen(
        [sys.executable, *command(killed, *forever, "evaluation.every_steps=0")],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 240
    while not (killed / "events.jsonl").exists() or len(steps_of(killed)) < 8:
        assert time.monotonic() < deadline, "no eight steps within four minutes"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    version = load_checkpoint(killed).state.policy_version
    assert version >= 6
    train(
        resumed,
        *overrides,
        f"trainer.num_steps={version + 4}",
        "evaluation.every_steps=0",
        f"resume_from={killed}",
    )
    trained = groups_of(killed, up_to=version) + groups_of(resumed)
    assert trained == batches(version + 4)
    assert 0 < max(row["staleness/max"] for row in steps_of(resumed)) <= 2
