"""Runs that go on: from their directory alone, in it or in a new one, with what differs said."""

import json
import re
from pathlib import Path

import pytest
import torch

from rl.tracking.events import EventLog, read_events
from tests.e2e.runs import ANYTHING, run_script, steps_of, train, weights_of

RUN = (
    ANYTHING,
    "evaluation.every_steps=0",
    "checkpoint.every_steps=2",
    "trainer.lr_schedule=linear",
)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("resume") / "half"
    train(run_dir, *RUN, "trainer.num_steps=2")
    return run_dir


def go_on(*overrides: str, code: int = 0) -> str:
    """Run scripts/train.py with these overrides alone."""
    return run_script("train", *overrides, code=code)


def words(output: str) -> str:
    return re.sub(r"\s+", " ", output)


def test_the_run_alone_is_named_and_it_goes_on_in_its_own_directory(tmp_path, half):
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    constant = "trainer.lr_schedule=constant"
    train(whole, *RUN, constant, "trainer.num_steps=4")
    train(run_dir, *RUN, constant, "trainer.num_steps=2")
    # as if it had been killed in step 4, of which no checkpoint was kept
    log = EventLog(run_dir / "events.jsonl")
    log.write("step", {"step": 3})
    log.close()
    output = go_on(f"resume_from={run_dir}", "trainer.num_steps=4")
    assert "at step 2" in words(output)
    assert "trainer.num_steps: 2 -> 4" in words(output)
    first, second = weights_of(whole, 4), weights_of(run_dir, 4)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [row["step"] for row in steps_of(run_dir)] == [1, 2, 3, 4]
    samples = [json.loads(line)["step"] for line in (run_dir / "samples.jsonl").open()]
    assert sorted(set(samples)) == [1, 2, 3, 4]
    assert (run_dir / "config.until_v2.yaml").exists()
    # and once more, from the config that it has now
    go_on(f"resume_from={run_dir}", "trainer.num_steps=5")
    assert [row["step"] for row in steps_of(run_dir)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("num_steps", [1, 2])
def test_a_run_with_nothing_left_to_do_says_so_and_makes_no_directory(tmp_path, half, num_steps):
    new = tmp_path / "new"
    output = go_on(
        f"resume_from={half}", f"trainer.num_steps={num_steps}", f"run_dir={new}", code=2
    )
    assert output.startswith("error: ")
    assert f"trainer.num_steps must be > 2, the steps that resume_from={half} has made" in words(
        output
    ).replace("- ", "-")
    assert not new.exists()


def test_what_differs_is_said_key_by_key_with_what_it_changes(tmp_path, half):
    output = words(
        go_on(
            f"resume_from={half}", f"run_dir={tmp_path / 'new'}", "trainer.num_steps=3", "seed=7",
            "trainer.learning_rate=5e-4",
        )
    )  # fmt: skip
    assert "trainer.num_steps: 2 -> 3" in output
    assert "trainer.learning_rate: 0.001 -> 0.0005" in output
    assert "seed: 0 -> 7" in output
    assert "another seed" in output
    # 2 of 3 steps are made, of 2 all were
    assert (
        "the learning rate of the next step is 0.000167; with the earlier schedule it would be 0"
        in output
    )


def test_held_out_prompts_that_were_trained_on_are_refused(tmp_path, half):
    new = tmp_path / "new"
    arguments = (f"resume_from={half}", f"run_dir={new}", "trainer.num_steps=3")
    output = words(go_on(*arguments, "task.seed=1", "task.num_held_out=900", code=2))
    assert re.search(
        r"error: [1-9]\d* of the 900 held-out prompts of this task were trained on", output
    )
    assert not new.exists()
    output = words(
        go_on(*arguments, "task.operations=[sum]", "task.min_digits=4", "task.max_digits=4")
    )
    assert "task.min_digits: 1 -> 4" in output
    assert "another task" in output


@pytest.mark.parametrize("size", [1, 9])
def test_batches_may_be_of_another_size_from_then_on(tmp_path, half, size):
    go_on(
        f"resume_from={half}", f"run_dir={tmp_path / 'new'}", "trainer.num_steps=4",
        f"num_prompts_per_step={size}",
    )  # fmt: skip
    assert [row["step"] for row in steps_of(tmp_path / "new")] == [3, 4]
    kinds = [row["event"] for row in read_events(tmp_path / "new" / "events.jsonl")]
    assert kinds[-1] == "run_end"
